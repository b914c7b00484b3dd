"""What asks a run to end, when, and in which process: all end with status 75, and resume as if nothing had happened."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from datetime import timedelta

import pytest
from interruption import Interruption, outcome, run
from launching import ROOT

import benchmark
from benchmark.training.preemption import Preempted, Preemption

TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.fixture
def train(tiny, tmp_path):
    """Train into the folder `name` with the processes' exit statuses as the result."""

    def go(name, processes=1, interruption=None, more=(), **options):
        flags = [*tiny, "--output.dir", str(tmp_path / name), *more]
        return run(flags, tmp_path / f"{name}.log", processes, interruption, **options)

    go.log = lambda name: (tmp_path / f"{name}.log").read_text()
    return go


@pytest.mark.parametrize(
    "processes, interruptions",
    [
        (1, [Interruption("step", 2, TERM), Interruption("evaluate", 70, USR1), Interruption("write", 2, INT)]),
        (2, [Interruption("evaluate", 3, TERM, rank=1)]),
        pytest.param(
            2,
            [
                Interruption(event, count, number, rank)
                for event, count in (
                    ("step", 1),
                    ("step", 4),
                    ("evaluate", 1),
                    ("evaluate", 60),
                    ("write", 2),
                    ("log", 3),
                )
                for number in (TERM, USR1, INT)
                for rank in (0, 1)
                if rank == 0 or event not in ("write", "log")
            ],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_signal_to_one_process_ends_all_with_75_and_loses_nothing(train, tmp_path, processes, interruptions):
    workers = ["--data.num_workers", "2"] if processes == 2 else []
    assert train("whole", processes) == [0] * processes
    expected = outcome(tmp_path / "whole")
    for number, interruption in enumerate(interruptions):
        name = f"cut{number}"
        assert train(name, processes, interruption, workers) == [75] * processes, (str(interruption), train.log(name))
        marker = json.loads((tmp_path / name / "preempted.json").read_text())
        assert (tmp_path / name / f"checkpoints/step-{marker['step']:08d}").is_dir()
        assert not (tmp_path / name / "results.json").exists()
        assert train(name, processes) == [0] * processes, train.log(name)
        assert outcome(tmp_path / name) == expected, str(interruption)
        assert not (tmp_path / name / "preempted.json").exists()


def test_a_signal_in_an_evaluation_that_is_repeated_after_one(train, tmp_path):
    """Twice in the evaluation of one step, and then killed: its lines stand in metrics.jsonl once."""
    train("whole")
    assert train("cut", interruption=Interruption("evaluate", 2, TERM)) == [75]
    assert train("cut", interruption=Interruption("evaluate", 2, TERM)) == [75]
    assert train("cut", interruption=Interruption("step", 1, signal.SIGKILL)) == [-9]
    assert train("cut") == [0]
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_process_that_is_stuck_is_named(train):
    short = {
        f"training.{name}": timedelta(seconds=3)
        for name in ("preemption__AGREEMENT_TIMEOUT", "preemption__ROLL_CALL_TIMEOUT", "launch__COLLECTIVE_TIMEOUT")
    }
    statuses = train("run", 2, Interruption("step", 2, signal.SIGSTOP, rank=1), patience=1, **short)
    assert statuses == [2, -signal.SIGKILL]
    sentence = [line for line in train.log("run").splitlines() if line.startswith("error:")]
    assert len(sentence) == 1 and "Ranks 1 failed" in sentence[0]


def test_a_signal_before_the_first_step_leaves_the_marker(train, tmp_path):
    assert train("cut", interruption=Interruption("dataset", 1, TERM)) == [75]
    assert json.loads((tmp_path / "cut/preempted.json").read_text()) == {"step": 0, "reason": "SIGTERM"}
    assert train("cut") == [0]
    assert not (tmp_path / "cut/preempted.json").exists()


class Alone:
    """As much of an accelerator as one process needs."""

    num_processes, is_main_process, wait_for_everyone = 1, True, staticmethod(lambda: None)


def test_a_signal_and_its_echo_are_one_and_a_second_one_ends_at_once(tmp_path):
    script = (
        "import hashlib, os, signal, sys, time; from pathlib import Path\n"
        "sys.path.insert(0, 'tests')\n"
        "from benchmark.training import preemption\n"
        "class Alone: num_processes, is_main_process = 1, True\n"
        "with preemption.Preemption(Alone, Path(sys.argv[1])) as watch:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.5)\n"
        "    print('lives', flush=True)\n"
        "    watch.asked_at -= 2\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"  # a minute and more in which Python runs no handler
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + TERM and done.stdout == "lives\n", done.stderr
    assert done.stderr.splitlines() == ["SIGTERM: the run ends once what it does now is done and saved."]


def test_former_signal_handlers_are_restored_after_a_run(tmp_path):
    before = {number: signal.getsignal(number) for number in (TERM, USR1, INT, signal.SIGHUP)}
    with Preemption(Alone, tmp_path / "marker") as watch:
        assert signal.getsignal(TERM) != before[TERM]
        watch.check()
        assert watch.any_process(True) and not watch.any_process(False)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_lost_launcher_asks_to_end_but_a_lost_shell_does_not(tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    shell = Preemption(Alone, tmp_path / "marker")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    launched = Preemption(Alone, tmp_path / "marker")
    shell.check()
    launched.check()
    monkeypatch.setattr(os, "getppid", lambda: benchmark.LAUNCHER + 1)
    shell.check()
    with pytest.raises(Preempted) as end:
        launched.check()
    assert end.value.code == 75
    launched._receive(TERM)  # which comes with the launcher's end, and is no second one


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes"]
ON_THE_CPU = {
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
}


def test_a_signal_to_the_launcher_of_one_process(tiny, tmp_path):
    """It ends the launcher alone, which the process notices."""
    folder = tmp_path / "run"
    flags = [*tiny, "--train.steps", "100000", "--train.log_every", "1", "--train.eval_every", "100000"]
    command = [*LAUNCH, "1", "train.py", *flags]
    launcher = subprocess.Popen(command, cwd=ROOT, env=os.environ | ON_THE_CPU, stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") > 2)
    launcher.send_signal(TERM)
    wait_for((folder / "preempted.json").exists)
    assert launcher.wait(60) != 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, USR1])
@pytest.mark.parametrize("event", ["step", "evaluate", "write"])
def test_a_signal_to_the_launcher_of_two_processes(train, tiny, tmp_path, event, number):
    """During a step, an evaluation and a save; its own status hides the 75 of each."""
    interruption = json.dumps({"event": event, "count": 2, "number": number, "launcher": True})
    command = [
        *LAUNCH,
        "2",
        "--main_process_port",
        "0",
        "--multi_gpu",
        "tests/helpers/interrupted_train.py",
        str(tmp_path),
        interruption,
    ]
    flags = [*tiny, "--output.dir", str(tmp_path / "cut")]
    assert subprocess.run([*command, *flags], cwd=ROOT, env=os.environ | ON_THE_CPU, capture_output=True).returncode
    assert [(tmp_path / f"status-{rank}").read_text() for rank in range(2)] == ["75", "75"]
    assert (tmp_path / "cut/preempted.json").exists()
    assert train("whole", 2) == train("cut", 2) == [0, 0]
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_within_a_minute(tiny, tmp_path):
    folder = tmp_path / "run"
    flags = [*tiny, "--train.steps", "100000", "--train.log_every", "1", "--train.eval_every", "100000"]
    # The launcher reads $$ as one $.
    shell = f'echo $$$$ > {tmp_path}/pid-$RANK; exec {sys.executable} train.py "$@"'
    command = [*LAUNCH, "2", "--main_process_port", "0", "--multi_gpu", "--no_python", "sh", "-c", shell, "sh", *flags]
    launcher = subprocess.Popen(command, cwd=ROOT, env=os.environ | ON_THE_CPU, stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") > 2)
    pids = [int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)]
    os.kill(pids[1], signal.SIGKILL)
    assert launcher.wait(60) != 0
    assert not os.path.exists(f"/proc/{pids[0]}")


def test_a_closed_terminal_saves_the_run(tiny, tmp_path):
    """Its SIGHUP does; what is printed afterwards has nowhere to go, and is no error."""
    folder, (terminal, inside) = tmp_path / "run", pty.openpty()

    def take_terminal():
        os.setsid()
        fcntl.ioctl(inside, termios.TIOCSCTTY, 0)

    flags = [*tiny, "--train.steps", "100000", "--train.log_every", "1", "--train.eval_every", "100000"]
    command = [sys.executable, "train.py", *flags]
    run = subprocess.Popen(command, cwd=ROOT, stdin=inside, stdout=inside, stderr=inside, preexec_fn=take_terminal)
    os.close(inside)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") > 2)
    os.close(terminal)
    assert run.wait(60) == 75
    marker = json.loads((folder / "preempted.json").read_text())
    assert marker["reason"] == "SIGHUP" and (folder / f"checkpoints/step-{marker['step']:08d}").is_dir()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """nohup ignores SIGHUP, so that a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption(Alone, tmp_path / "marker") as watch:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.2)
            watch.check()
    finally:
        signal.signal(signal.SIGHUP, before)
