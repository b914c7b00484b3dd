"""Sweeps on this machine, with a stand-in for training: every run once, by whichever sweep, and whichever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import ROOT

from benchmark.errors import UserError
from benchmark.launchers.local import LocalSweep, Place, find_places
from benchmark.study.status import FAILED, FINISHED, INTERRUPTED, run_status, study_status, summary
from benchmark.study.study import Cell

STUB = ROOT / "tests" / "helpers" / "stub_train.py"
SWEEP = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_local import cells, sweep
sys.exit(75 if sweep(Path({folder!r}), cells(Path({folder!r}), {names!r})) else 0)
"""


def cells(folder: Path, names: list[str]) -> list[Cell]:
    return [
        Cell("s", name, 0, (), ("--output.dir", str(folder / "s" / f"{name}-seed0")), folder / "s" / f"{name}-seed0")
        for name in names
    ]


def sweep(folder: Path, some: list[Cell], places: int = 1, said: list | None = None) -> bool:
    place = Place((sys.executable, str(STUB), str(folder / "journal")), {"OMP_NUM_THREADS": "3"})
    say = print if said is None else said.append
    return LocalSweep([place] * places, say, lambda: None).run(some)


def start_sweep(folder: Path, names: list[str]) -> subprocess.Popen:
    script = SWEEP.format(here=str(Path(__file__).parent), folder=str(folder), names=names)
    return subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": f"{ROOT}:{STUB.parent}"})


def starts(folder: Path) -> list[str]:
    file = folder / "journal"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_failure_leaves_the_others_alone_and_is_told(tmp_path):
    runs, said = cells(tmp_path, ["a", "fails", "b"]), []
    assert sweep(tmp_path, runs, places=2, said=said) is False
    statuses = study_status(runs)
    assert [status.state for status in statuses.values()] == [FINISHED, FAILED, FINISHED]
    assert statuses[runs[1]].sentence == "the stand-in fails, as it was asked to."
    assert [line.split()[2] for line in (tmp_path / "journal").read_text().splitlines()] == ["3"] * 3
    assert any("s/fails-seed0: failed" in line for line in said)
    assert summary(statuses).startswith("3 runs: 2 finished, 1 failed")
    assert sweep(tmp_path, runs) is False  # again: what failed is tried once more, what is finished is not
    assert sorted(starts(tmp_path)) == sorted(["s/a-seed0", "s/b-seed0", "s/fails-seed0", "s/fails-seed0"])


def test_two_sweeps_at_once_and_a_third_later_run_everything_once(tmp_path):
    names = ["a", "b", "c", "d", "fails"]
    first = [start_sweep(tmp_path, names), start_sweep(tmp_path, names)]
    wait_until(lambda: starts(tmp_path))
    third = start_sweep(tmp_path, names)
    assert [process.wait(60) for process in [*first, third]] == [0, 0, 0]
    assert sorted(starts(tmp_path)) == sorted(f"s/{name}-seed0" for name in names)


def test_a_run_whose_sweep_was_killed_is_left_alone_while_it_lives_and_taken_over_when_it_is_dead(tmp_path):
    owner = start_sweep(tmp_path, ["slow"])
    folder = tmp_path / "s" / "slow-seed0"
    wait_until(lambda: run_status(folder).steps == 10)
    run = int((tmp_path / "journal").read_text().split()[1])
    owner.kill()
    owner.wait()
    other = start_sweep(tmp_path, ["slow"])
    time.sleep(1.5)
    assert len(starts(tmp_path)) == 1, "a living run was started again"
    assert run_status(folder).state == "running"
    (folder / "hurry").touch()
    os.kill(run, signal.SIGKILL)
    assert other.wait(60) == 0
    assert len(starts(tmp_path)) == 2
    assert run_status(folder).state == FINISHED


def test_a_signal_ends_all_runs_as_preempted_and_the_next_sweep_resumes_them(tmp_path):
    process = start_sweep(tmp_path, ["slow", "b"])
    folder = tmp_path / "s" / "slow-seed0"
    wait_until(lambda: run_status(folder).steps == 10)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert starts(tmp_path) == ["s/slow-seed0"]
    assert run_status(folder).state == INTERRUPTED
    (folder / "hurry").touch()
    assert sweep(tmp_path, cells(tmp_path, ["slow", "b"])) is False
    assert starts(tmp_path) == ["s/slow-seed0", "s/slow-seed0", "s/b-seed0"]


def test_a_run_that_is_preempted_twice_at_one_step_has_not_failed_and_an_old_mark_saves_none(tmp_path):
    folder, failing = (tmp_path / "s" / f"{name}-seed0" for name in ("slow", "fails"))
    failing.mkdir(parents=True)
    (failing / "preempted.json").write_text('{"step": 4}')
    process = start_sweep(tmp_path, ["fails", "slow"])
    for number in (2, 3):
        wait_until(lambda number=number: len(starts(tmp_path)) == number and run_status(folder).state == "running")
        time.sleep(0.5)
        if number == 3:
            (folder / "hurry").touch()
        os.kill(int((tmp_path / "journal").read_text().split("\n")[number - 1].split()[1]), signal.SIGTERM)
    assert process.wait(60) == 0
    assert starts(tmp_path) == ["s/fails-seed0", *["s/slow-seed0"] * 3]
    assert (run_status(folder).state, run_status(failing).state) == (FINISHED, FAILED)


def test_a_machines_places():
    eight = [str(number) for number in range(8)]
    pairs = find_places(eight, 2, 1, 16)
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in pairs] == ["0,1", "2,3", "4,5", "6,7"]
    assert pairs[0].environment["OMP_NUM_THREADS"] == "2"
    assert pairs[0].command[-4:] == ("--num_processes", "2", "--main_process_port", "0")
    assert len(find_places(eight, 3, 1, 16)) == 2
    assert [place.environment["OMP_NUM_THREADS"] for place in find_places([], 1, 3, 8)] == ["2"] * 3
    with pytest.raises(UserError, match="--gpus_per_run 9"):
        find_places(eight, 9, 1, 16)
