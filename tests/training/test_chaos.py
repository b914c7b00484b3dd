"""Killed without a warning at any moment, a run ends bitwise as one that was not."""

import signal

import pytest
from interruption import Interruption, metrics, outcome, run

POINTS = [
    *(Interruption("step", count) for count in range(1, 6)),
    *(Interruption("write", count) for count in range(1, 9)),  # each file of the first and of the second checkpoint
    *(Interruption("rename", count) for count in (1, 2)),
    Interruption("prune", 1),
    *(Interruption("evaluate", count) for count in (1, 20)),
    *(Interruption("log", count) for count in (1, 3)),
]


def kill_and_resume(tiny, tmp_path, processes, workers, points):
    """The rows of a table: point, exit status of the killed process, and whether the resumed run is the whole one."""
    flags = [*tiny, "--train.keep_checkpoints", "1", "--data.num_workers", str(workers)]
    log = tmp_path / "log"
    assert run([*flags, "--output.dir", str(tmp_path / "whole")], log, processes) == [0] * processes, log.read_text()
    rows = []
    for number, point in enumerate(points):
        folder = tmp_path / f"killed{number}"
        killed = run([*flags, "--output.dir", str(folder)], log, processes, point)[0]
        resumed = run([*flags, "--output.dir", str(folder)], log, processes)
        same = resumed == [0] * processes and outcome(folder) == outcome(tmp_path / "whole")
        rows.append((processes, workers, point, killed, same))
    return rows


@pytest.mark.parametrize(
    "processes, workers, points",
    [(1, 0, [Interruption("step", 4), Interruption("write", 6)]), (2, 2, [Interruption("rename", 2)])],
)
def test_killed_at_some_points(tiny, tmp_path, processes, workers, points):
    for row in kill_and_resume(tiny, tmp_path, processes, workers, points):
        assert row[-2:] == (-signal.SIGKILL, True), row


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_killed_at_twenty_points(tiny, tmp_path, processes, workers, capsys):
    tiny = [*tiny, "--train.global_batch_size", "6"]
    rows = kill_and_resume(tiny, tmp_path, processes, workers, POINTS)
    with capsys.disabled():
        print("\nprocesses  workers  killed at                        status  equal to the whole run")
        for processes, workers, point, status, same in rows:
            print(f"{processes:9}  {workers:7}  {point!s:<32} {status:>6}  {'yes' if same else 'NO'}")
    assert len(rows) == 20
    assert all(row[-2:] == (-signal.SIGKILL, True) for row in rows)


@pytest.mark.parametrize(
    "before, after, steps",
    [(2, 1, 8), pytest.param(2, 1, 56, marks=pytest.mark.slow), pytest.param(1, 2, 56, marks=pytest.mark.slow)],
)
def test_a_run_resumes_with_another_number_of_processes(tiny, tmp_path, before, after, steps):
    """Every later loss is within 1e-4 of the uninterrupted run's, which other samples would not give."""
    flags = [*tiny, "--train.steps", str(steps), "--train.log_every", "1", "--train.eval_every", str(steps)]
    log = tmp_path / "log"
    assert run([*flags, "--output.dir", str(tmp_path / "whole")], log, before) == [0] * before
    folder = [*flags, "--output.dir", str(tmp_path / "moved")]
    assert run(folder, log, before, Interruption("step", 5, signal.SIGTERM)) == [75] * before
    assert run(folder, log, after) == [0] * after, log.read_text()
    losses = [
        [line["train/loss"] for line in metrics(tmp_path / name) if "train/loss" in line] for name in ("whole", "moved")
    ]
    assert len(losses[1]) == steps and losses[1][:5] == losses[0][:5]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert min(abs(a - b) for a, b in zip(losses[0][5:], losses[0][6:], strict=False)) > 1e-4


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "mask2former", "eomt"])
def test_sharded_by_fsdp_a_run_is_the_one_of_ddp_and_resumes(tiny, tmp_path, head):
    """On the CPU, where the forwards of the two processes stay equal in number."""
    flags, log = (
        [*tiny, "--model.head", head, "--model.mask2former.num_points", "64", "--train.log_every", "1"],
        tmp_path / "log",
    )
    flags += ["--train.eval_batch_size", "3", "--model.eomt.num_points", "64"]
    assert run([*flags, "--output.dir", str(tmp_path / "ddp")], log, 2) == [0, 0], log.read_text()
    assert run([*flags, "--output.dir", str(tmp_path / "fsdp")], log, 2, environment=FSDP) == [0, 0], log.read_text()
    cut = [*flags, "--output.dir", str(tmp_path / "cut")]
    assert run(cut, log, 2, Interruption("evaluate", 3, signal.SIGTERM, rank=1), environment=FSDP) == [75, 75]
    assert run(cut, log, 2, environment=FSDP) == [0, 0]
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "fsdp")
    losses = [
        [line["train/loss"] for line in metrics(tmp_path / name) if "train/loss" in line] for name in ("ddp", "fsdp")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    published = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "model").glob("*.*n")} for name in ("ddp", "fsdp")
    ]
    assert published[0]["config.json"] == published[1]["config.json"]
    assert not list((tmp_path / "fsdp/model").glob("_fsdp*"))


def test_fsdp_that_accelerate_would_leave_out_is_refused(tiny, tmp_path):
    log = tmp_path / "log"
    assert run(tiny, log, environment=FSDP) == [2]
    assert "FSDP was asked for" in log.read_text()
