"""How long a study will take, from what its runs have told."""

import json
from pathlib import Path

import pytest
from launching import ROOT
from synthetic_runs import write_run

from benchmark.recipe.parser import load_recipe
from benchmark.study.status import FAILED, FINISHED, INTERRUPTED, RUNNING, WAITING, Status, run_status, summary
from benchmark.study.study import Cell

HOUR = 3600.0


def table(*runs: tuple[str, Status]) -> dict[Cell, Status]:
    return {Cell(setting, str(k), 0, (), (), Path(str(k))): status for k, (setting, status) in enumerate(runs)}


DONE = Status(FINISHED, 100, 100, 0.5, 3 * HOUR)  # an hour of training, two of evaluation
HALF = Status(RUNNING, 50, 100, 0.4, 0.5 * HOUR)  # as its speed of training says


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ((("a", DONE), ("a", HALF)), "about 1 h 30 min left"),
        ((("a", DONE), ("a", HALF), ("a", HALF), ("a", Status(WAITING))), "about 3 h 0 min left"),
        ((("a", HALF), ("a", Status(WAITING))), "about 1 h 30 min of training left"),
        ((("a", DONE), ("b", HALF)), "about 30 min of training left"),
        ((("a", DONE), ("b", Status(WAITING))), "about 3 h 0 min left"),
        ((("a", DONE), ("a", Status(INTERRUPTED, 75, 100))), "about 45 min left"),
        ((("a", DONE), ("a", Status(FAILED))), "1 failed"),
        ((("a", Status(WAITING)),), "1 waiting"),
    ],
)
def test_the_time_left_holds_evaluations_where_a_finished_run_of_the_setting_measured_them(runs, told):
    """By hand: what is left is a run's length times the share of its steps, over the runs at once."""
    assert summary(table(*runs)).endswith(told)


def test_the_score_of_a_run_is_that_of_its_first_dataset_before_and_after_its_end(tmp_path):
    flags = ["--data.val", "[camvid, shapes]"]
    results = write_run(tmp_path / "run", [ROOT / "recipes" / "quickstart.yaml"], flags, 0.8)
    lines = [
        {"step": 50, "val/camvid/mean_iou": 0.3},
        {"step": 50, "val/shapes/mean_iou": 0.2},
        {"step": 100, "val/camvid/mean_iou": results["mean_iou"], "val/camvid/mean_boundary_iou": 0.1},
        {"step": 100, "val/shapes/mean_iou": 0.4},
        {"step": 150, "train/loss": 1.0},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished = run_status(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    before = run_status(tmp_path / "run")
    assert (before.state, before.step) == (INTERRUPTED, 150)
    assert before.score == finished.score == results["mean_iou"]


def test_a_run_tells_by_its_speed_how_long_its_steps_still_take(tmp_path):
    recipe = load_recipe([str(ROOT / "recipes" / "quickstart.yaml")])
    write_run(tmp_path / "run", [ROOT / "recipes" / "quickstart.yaml"], [], 0.8)
    (tmp_path / "run" / "results.json").unlink()
    line = {"step": recipe.train.steps - 30, "speed/images_per_second": 12.0}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert run_status(tmp_path / "run").seconds == 30 * recipe.train.global_batch_size / 12
