"""How long a study will take, from what its runs have told."""

from pathlib import Path

import pytest

from benchmark.study.status import FAILED, FINISHED, INTERRUPTED, RUNNING, WAITING, Status, summary
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
