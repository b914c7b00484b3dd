"""Every launch configuration: read by accelerate's own loader, and launched as far as a machine without GPUs allows."""

import argparse
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from interruption import metrics
from launching import ROOT, run_python

from benchmark.training.memory import plan_steps

FOLDER = ROOT / "accelerate_configs"
TYPES = {
    "cpu": DistributedType.NO,
    "cpu_2proc": DistributedType.MULTI_GPU,
    "single_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
    "multi_node": DistributedType.MULTI_GPU,
    "mps": DistributedType.NO,
}


def launch_arguments(name: str, *more: str) -> argparse.Namespace:
    """What `accelerate launch` understands of a configuration."""
    arguments = ["--config_file", str(FOLDER / f"{name}.yaml"), *more, "train.py"]
    return _validate_launch_command(launch_command_parser().parse_args(arguments))[0]


def test_every_configuration_is_known_here_and_in_the_readme():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TYPES)
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{name}.yaml`" in readme for name in TYPES) and "`slurm.sh`" in readme


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_it_as_what_it_says(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == TYPES[name]
    text = (FOLDER / f"{name}.yaml").read_text().replace("\\\n#    ", "")
    command = rf"^# .*accelerate launch --quiet --config_file accelerate_configs/{name}\.yaml .*train\.py --recipe"
    assert re.search(command, text, re.MULTILINE)


def test_fsdp_asks_for_version_2_block_by_block_and_a_full_state():
    environment = prepare_multi_gpu_env(launch_arguments("fsdp"))
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


def test_multi_node_meets_by_c10d_at_the_address_on_the_line():
    line = "--rdzv_backend c10d --main_process_ip 10.0.0.1 --machine_rank 1"
    arguments = launch_arguments("multi_node", *line.split())
    prepare_multi_gpu_env(arguments)
    assert arguments.rdzv_backend == "c10d" and arguments.num_machines == 2 and arguments.num_processes == 16
    assert (arguments.rdzv_endpoint, arguments.nproc_per_node, arguments.nnodes) == ("10.0.0.1:29500", "8", "2")


@pytest.mark.parametrize("name", ["cpu", "mps", "single_gpu"])
def test_a_single_process_is_launched_as_one(name):
    command, environment = prepare_simple_launcher_cmd_env(launch_arguments(name))
    assert command[-1] == "train.py"
    assert environment["ACCELERATE_USE_CPU"].lower() == str(name == "cpu").lower()


def test_deepspeed_shards_as_much_as_its_name_says():
    for stage in (2, 3):
        arguments = launch_arguments(f"deepspeed_zero{stage}")
        assert arguments.use_deepspeed and int(arguments.zero_stage) == stage


def test_deepspeed_clips_no_gradients():
    plugin = SimpleNamespace(deepspeed_config={"gradient_clipping": "auto"})
    accelerator = SimpleNamespace(
        num_processes=1,
        device=torch.device("cuda"),
        distributed_type=DistributedType.DEEPSPEED,
        state=SimpleNamespace(deepspeed_plugin=plugin),
    )
    assert plan_steps(16, 16, None, accelerator).micro_batch_size == 16
    assert plugin.deepspeed_config == {
        "gradient_clipping": 0.0,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 1,
    }


def test_two_processes_on_the_cpu_are_two(tiny):
    """By the file's own line."""
    line = (FOLDER / "cpu_2proc.yaml").read_text()
    assert "ACCELERATE_USE_CPU=true accelerate launch --quiet --config_file" in line
    done = run_python(
        *("-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2proc.yaml"),
        *("train.py", *tiny, "--train.steps", "1"),
        ACCELERATE_USE_CPU="true",
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es) x 1 accumulated x micro batch 2 = 4" in done.stdout and "backend gloo" in done.stdout


@pytest.mark.slow
def test_one_process_on_the_cpu(tiny):
    done = run_python(
        *("-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"),
        *("train.py", *tiny, "--train.steps", "1"),
    )
    assert done.returncode == 0 and "1 process(es)" in done.stdout, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero2", "deepspeed_zero3"])
def test_the_first_losses_on_gpus_are_those_of_ddp(tiny, tmp_path, name):
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    losses = {}
    for configuration in ("multi_gpu", name):
        folder = tmp_path / configuration
        done = run_python(
            *("-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{configuration}.yaml"),
            *("--num_processes", "2", "train.py", *tiny, "--train.log_every", "1", "--output.dir", str(folder)),
        )
        assert done.returncode == 0, done.stderr
        losses[configuration] = [line["train/loss"] for line in metrics(folder) if "train/loss" in line]
    assert len(losses[name]) == 6 and losses[name] == pytest.approx(losses["multi_gpu"], abs=1e-3)


@pytest.fixture
def slurm(tmp_path):
    """slurm.sh with a Slurm of scripts: srun leaves a file in the run folder, scontrol tells what it was asked."""

    def run(leaves: str, *arguments: str, found: str = "log") -> tuple[int, str]:
        output = tmp_path / "output"
        output.mkdir()
        (output / found).touch()
        scripts = {
            "srun": f'touch "{output}/{leaves or "log"}"; printf "%s\\n" "$PET_SIGNALS_TO_HANDLE" "$@"; exit 1',
            "scontrol": 'if [ "$1" = show ]; then echo node1; else echo "asked: $*"; fi',
        }
        for name, body in scripts.items():
            script = tmp_path / name
            script.write_text(f"#!/bin/bash\n{body}\n")
            script.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
        done = subprocess.run(
            ["bash", str(FOLDER / "slurm.sh"), *(arguments or ("--recipe", "a b.yaml", "--output.dir", str(output)))],
            env=environment | {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_GPUS_ON_NODE": "4"},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    "leaves, status, requeued", [("results.json", 0, False), ("preempted.json", 0, True), ("", 1, False)]
)
def test_slurm_requeues_a_preempted_run_alone(slurm, leaves, status, requeued):
    returncode, told = slurm(leaves)
    assert returncode == status and ("asked: requeue 7" in told) == requeued
    assert "SIGUSR1" in told and "--num_processes 8" in told and "--main_process_ip node1" in told
    assert "a b.yaml\n" in told  # an argument with a space stays one


def test_slurm_does_not_take_an_earlier_marker_for_this_ones(slurm):
    returncode, told = slurm("", found="preempted.json")
    assert returncode == 1 and "requeue" not in told


def test_slurm_asks_for_the_run_folder(slurm):
    returncode, told = slurm("", "--recipe", "a.yaml")
    assert returncode == 2 and "--output.dir" in told


def test_the_script_is_good_bash():
    assert Path(FOLDER / "slurm.sh").stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")]).returncode == 0
