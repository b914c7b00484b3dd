"""Slurm's array job as text, and which runs are submitted, with stand-ins for sbatch and squeue."""

import json
import os
import re
import shlex
import subprocess

import pytest
from launching import ROOT

from benchmark.errors import UserError
from benchmark.launchers import slurm
from benchmark.launchers.slurm import read_jobs, submit, write_job
from benchmark.study.study import load_study

STUDY = ROOT / "recipes" / "studies" / "tiny.yaml"


@pytest.fixture
def study(tmp_path):
    found = load_study(STUDY, folder=tmp_path / "a study")
    found.folder.mkdir()
    return found


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """sbatch gives jobs 1, 2, ..., and squeue tells a job's tasks from the file of its number in `queue`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    queue = tmp_path / "queue"
    queue.mkdir()
    sbatch = f"cd {queue}; number=$(( $(ls | wc -l) + 1 )); touch $number; echo $number';cluster'"
    for name, text in (("sbatch", sbatch), ("squeue", f'cat {queue}/"${{@: -1}}"')):
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return queue


def test_the_script_is_bash_and_asks_for_what_was_said(study, tmp_path):
    script = write_job(study.folder, study, study.cells, {"partition": "gpu", "time": "1:00:00"}, 2)
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    header = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    for option in ("partition=gpu", "time=1:00:00", "array=0-23", "gpus-per-node=2", "requeue", "signal=USR1@180"):
        assert f"#SBATCH --{option}" in header
    lines = (study.folder / "lines").read_text().splitlines()
    folders = (study.folder / "folders").read_text().splitlines()
    assert len(lines) == len(folders) == 24
    for cell, line, folder in zip(study.cells, lines, folders, strict=True):
        words = shlex.split(line)
        assert words[words.index("--recipe") :][: len(cell.arguments)] == cell.arguments
        assert folder == str(cell.folder)
        assert words[words.index("--num_processes") + 1] == "2"


def test_values_with_spaces_and_quotes_are_one_argument(study, tmp_path):
    """Slurm's reader ends an argument at a space outside of quotes, and takes what follows a backslash as it is."""
    folder = tmp_path / 'a b\'c "d" #1'
    folder.mkdir()
    options = {"comment": "it's mine", "gres": "gpu:a100:1,tmp:10G", "partition": "gpu"}
    header = write_job(folder, study, study.cells, options, 1).read_text().splitlines()
    header = [line.removeprefix("#SBATCH ") for line in header if line.startswith("#SBATCH ")]
    assert "--gres=gpu:a100:1,tmp:10G" in header and "--partition=gpu" in header
    read = [re.fullmatch(r'(--[\w-]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s"\'\\#]*)))?', line) for line in header]
    assert all(read)
    values = {match[1]: match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2]) for match in read}
    assert values["--comment"] == "it's mine" and values["--output"] == f"{folder}/%A_%a.log"


@pytest.mark.parametrize(
    ("wanted", "gpus_per_run", "right"),
    [("2", None, False), ("0", 2, False), ("a100:4", 2, False), ("2", 2, True), ("a100:2", 2, True), ("0", None, True)],
)
def test_slurm_gives_a_run_the_gpus_that_it_trains_on(study, wanted, gpus_per_run, right):
    def write():
        return write_job(study.folder, study, study.cells[:1], {"gpus-per-node": wanted}, gpus_per_run)

    if right:
        assert (f"--gpus-per-node={wanted}\n" in write().read_text()) == (wanted != "0")
    else:
        with pytest.raises(
            UserError, match=rf"gpus-per-node is {wanted}, but .* {gpus_per_run or 1} GPU.*--gpus_per_run"
        ):
            write()


@pytest.mark.parametrize(
    ("ending", "status", "told"), [("results.json", 0, ""), ("", 1, "error"), ("preempted.json", 0, "requeue 5_1")]
)
def test_the_script_says_how_its_run_ended(study, tmp_path, ending, status, told):
    script = write_job(study.folder, study, study.cells[:2], {"gpus-per-node": "0"}, None)
    run = study.cells[1].folder
    make = f"mkdir -p {shlex.quote(str(run))}; touch {shlex.quote(str(run / ending))}" if ending else "true"
    (study.folder / "lines").write_text(f"false\n{make}; echo 'OMP' $OMP_NUM_THREADS\n")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", 'shift; exec "$@"'), ("scontrol", 'echo "$@"')):
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    variables = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "5", "SLURM_CPUS_ON_NODE": "4"}
    environment = os.environ | variables | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", script], capture_output=True, text=True, env=environment, timeout=30)
    assert done.returncode == status
    assert told in done.stdout + done.stderr
    assert "OMP 4" in done.stdout
    assert "gpus-per-node" not in script.read_text()


def test_what_is_in_the_queue_is_not_submitted_again(study, commands, capsys):
    submit(study, study.cells[:4], {}, None)
    assert read_jobs(study.folder) == [{"job": "1", "runs": [cell.name for cell in study.cells[:4]]}]
    (commands / "1").write_text("1\n3\n")  # two tasks are left in the queue, two have gone
    submit(study, study.cells[:4], {}, None)
    assert read_jobs(study.folder)[1]["runs"] == [study.cells[0].name, study.cells[2].name]
    assert json.loads((study.folder / "slurm.json").read_text())[1]["job"] == "2"
    (commands / "2").write_text("0\n1\n")
    submit(study, study.cells[:4], {}, None)
    assert len(read_jobs(study.folder)) == 2
    assert "nothing to submit" in capsys.readouterr().out


def test_a_damaged_list_of_jobs_is_one_sentence(study, commands):
    study.folder.mkdir(parents=True, exist_ok=True)
    (study.folder / "slurm.json").write_text('[{"jo')
    with pytest.raises(UserError, match=r"slurm.json is damaged .* by .squeue."):
        submit(study, study.cells[:4], {}, None)


def test_without_slurm_one_sentence_says_so(study, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no sbatch here"):
        submit(study, study.cells[:1], {}, None)
    assert slurm.read_jobs(study.folder) == []
