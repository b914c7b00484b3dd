"""The whole way once, as a user goes it: a study file, real runs, one of which fails, and the report."""

import json

import pytest
from launching import run_python

from benchmark.commands.sweep import check
from benchmark.study.study import load_study

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


def test_a_sweep_with_a_failure_and_its_report(study, tmp_path):
    done = run_python("-m", "benchmark", *study, "--train.steps", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "one/bad-seed0 failed: " in done.stdout
    assert "wrong.safetensors" in done.stdout
    assert "error: one/unknown-seed0: timm knows no encoder 'nonsense'" in done.stderr
    assert "3 runs: 1 finished, 2 failed" in done.stdout
    results = json.loads((tmp_path / "runs" / "one" / "good-seed0" / "results.json").read_text())
    assert results["step"] == 2
    assert results["window_gflops"] > 0
    assert len(list((tmp_path / "runs" / "one" / "good-seed0" / "samples").iterdir())) == 12
    told = run_python("-m", "benchmark", "report", str(tmp_path / "runs"))
    assert told.returncode == 0, told.stderr
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


def test_faults_are_told_before_anything_starts(study, tmp_path):
    done = run_python("-m", "benchmark", *study, "--model.head", "nothing")
    assert done.returncode == 2
    assert "model.head is 'nothing'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_lines_are_printed_and_options_of_other_launchers_refused(study):
    done = run_python("-m", "benchmark", *study, "--launcher", "print", "--no_prepare")
    assert done.returncode == 1, done.stderr  # one of three cannot run
    assert len(done.stdout.splitlines()) == 2
    assert all(line.startswith("accelerate launch --quiet train.py --recipe ") for line in done.stdout.splitlines())
    refused = run_python("-m", "benchmark", *study, "--slurm.partition", "gpu")
    assert refused.returncode == 2
    assert "--slurm.partition is for --launcher slurm" in refused.stderr


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
