"""The whole way once, as a user goes it: a study file, real runs, one of which fails, and the report."""

import json

import pytest
from PIL import Image

from benchmark.__main__ import main
from benchmark.commands.sweep import check
from benchmark.errors import UserError, as_sentence
from benchmark.study.status import log_file
from benchmark.study.study import load_study
from benchmark.training.launch import num_cores

STUDY = """
encoders:
  good: [{model.encoder: test_vit}]
  bad: [{model.encoder: test_vit, model.checkpoint: wrong.safetensors}]
  unknown: [{model.encoder: nonsense}]
settings:
  one: [tiny.yaml]
"""


@pytest.fixture
def study(tmp_path, tiny, cache_dir):
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"blocks.0.norm1.weight": zeros(3)}, tmp_path / "wrong.safetensors")
    (tmp_path / "s.yaml").write_text(STUDY.replace("wrong.safetensors", str(tmp_path / "wrong.safetensors")))
    return [
        "sweep",
        str(tmp_path / "s.yaml"),
        "--output_dir",
        str(tmp_path / "runs"),
        "--data.cache_dir",
        str(cache_dir),
    ]


def test_a_sweep_with_a_failure_and_its_report(study, tmp_path, capfd):
    with pytest.raises(SystemExit, match=r"^1$"):
        main([*study, "--train.steps", "2", "--jobs", "2"])
    done = capfd.readouterr()
    assert "one/bad-seed0 failed: " in done.out
    assert "wrong.safetensors" in done.out
    assert "error: one/unknown-seed0: timm knows no encoder 'nonsense'" in done.err
    assert "3 runs: 1 finished, 2 failed" in done.out
    results = json.loads((tmp_path / "runs" / "one" / "good-seed0" / "results.json").read_text())
    assert results["step"] == 2
    # On two cores each run was asked to take 1, and takes no more, though launchers set a 1 of their own.
    log = log_file(tmp_path / "runs" / "one" / "good-seed0").read_text()
    assert f"cpu ({max(1, num_cores() // 2)} thread(s))" in log
    assert results["window_gflops"] > 0
    assert len(list((tmp_path / "runs" / "one" / "good-seed0" / "samples").iterdir())) == 12
    main(["report", str(tmp_path / "runs")])
    report = json.loads((tmp_path / "runs" / "report.json").read_text())
    (setting,) = report["settings"]
    assert [row["mean_iou"] for row in setting["rows"]] == [results["mean_iou"]]
    told = {run["encoder"]: (run["state"], run["sentence"]) for run in setting["missing"]}
    assert {encoder: state for encoder, (state, _) in told.items()} == {"bad": "failed", "unknown": "failed"}
    assert "wrong.safetensors" in told["bad"][1]
    assert "nonsense" in told["unknown"][1]
    page = (tmp_path / "runs" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3
    assert "wrong.safetensors" in page


def test_a_finished_run_whose_data_changed_is_a_fault(tiny, tmp_path, cache_dir, capsys):
    for number in range(4):
        for place, mode, color in (("images", "RGB", (number, 0, 0)), ("labels", "L", number % 2)):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.new(mode, (70, 60), color).save(tmp_path / place / f"{number}.png")
    custom = "{train_images: images, train_labels: labels, val_share: 0.5, split_seed: 1, classes: [a, b]}"
    data = f"{{data.train: folder, data.val: [folder], data.root: {tmp_path}, data.custom: {custom}}}"
    (tmp_path / "own.yaml").write_text(
        f"encoders: {{a: [{{model.encoder: test_vit}}]}}\nsettings: {{one: [tiny.yaml, {data}]}}\n"
    )
    command = ["sweep", str(tmp_path / "own.yaml"), "--output_dir", str(tmp_path / "runs"), "--train.steps", "1"]
    command += ["--data.cache_dir", str(cache_dir)]
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(command)
    for number in range(4):
        Image.new("L", (70, 60), 1 - number % 2).save(tmp_path / "labels" / f"{number}.png")
    with pytest.raises(UserError, match=r"one/a-seed0: the run was finished on other files of folder"):
        main(command)


def test_what_would_fail_later_is_a_fault_now(study, tmp_path, capfd):
    """A checkpoint that is not there, one encoder for all, and a place that is a file."""
    (tmp_path / "s.yaml").write_text(STUDY.replace("wrong.safetensors", str(tmp_path / "gone.safetensors")))
    with pytest.raises(SystemExit, match=r"^1$"):
        main([*study, "--launcher", "print"])
    assert "one/bad-seed0: There is no checkpoint" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"--model\.encoder is each run's own: remove it"):
        main([*study, "--model.encoder", "test_vit2"])
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError) as place:
        main(study)
    assert "cannot be read or written" in as_sentence(place.value)


def test_faults_are_told_before_anything_starts(study, tmp_path):
    with pytest.raises(UserError, match=r"model\.head is 'nothing'"):
        main([*study, "--model.head", "nothing"])
    assert not (tmp_path / "runs").exists()


def test_lines_are_printed_and_options_of_other_launchers_refused(study, capsys):
    with pytest.raises(SystemExit, match=r"^1$"):  # one of three cannot run
        main([*study, "--launcher", "print", "--no_prepare"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("accelerate launch --quiet train.py --recipe ") for line in lines)
    with pytest.raises(UserError, match=r"--slurm.partition is for --launcher slurm"):
        main([*study, "--slurm.partition", "gpu"])


@pytest.mark.parametrize(
    ("flags", "processes", "told"),
    [
        (["--data.train", "folder"], 1, "data.custom.classes"),
        ([], 3, "global_batch_size 4 does not divide by 3"),
        ([], 2, None),
    ],
)
def test_each_run_of_a_fault_that_several_share_is_kept_back(study, tmp_path, flags, processes, told):
    (tmp_path / "two.yaml").write_text(
        "encoders: {a: [{model.encoder: test_vit}]}\nsettings: {one: [tiny.yaml]}\nseeds: [0, 1]\n"
    )
    cells = load_study(tmp_path / "two.yaml", flags, tmp_path / "runs")
    missing, faults = check(cells, processes)
    assert len(faults) == (2 if told else 0)
    assert len(missing) == 2 - len(faults)
    assert all(told in fault for fault in faults.values())


@pytest.mark.parametrize("order", [("right", "wrong"), ("wrong", "right")])
def test_a_fault_of_one_settings_loss_is_not_anothers(tmp_path, tiny, order):
    settings = {"right": "[tiny.yaml]", "wrong": "[tiny.yaml, {loss.class_weights: [1, 2]}]"}
    lines = "".join(f"  {name}: {settings[name]}\n" for name in order)
    (tmp_path / "loss.yaml").write_text(f"encoders: {{a: [{{model.encoder: test_vit}}]}}\nsettings:\n{lines}")
    missing, faults = check(load_study(tmp_path / "loss.yaml", folder=tmp_path / "runs"), 1)
    assert [cell.setting for cell in missing] == ["right"]
    assert [cell.setting for cell in faults] == ["wrong"]
