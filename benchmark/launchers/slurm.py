"""A study's runs as one array job of Slurm, each task one run, requeued until it is finished."""

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from benchmark.launchers.local import GRACE, launch_options
from benchmark.reporting.run_folder import write_atomically
from benchmark.study.study import Cell, Study

JOBS = "slurm.json"  # in the study's folder: the jobs that were submitted, and the run of each task
SECONDS = 180  # between the signal and the end of the time limit: a checkpoint is written in them

# Slurm signals steps and not the script, so that a run is a step. Its line runs in a process group of its own, to which
# the step forwards signals, and which it outlives, because a launcher ends at a signal while its processes still save.
SCRIPT = """#!/bin/bash
{header}
set -um
folder=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {folders})
if [ "${{1:-}}" = step ]; then
    cd {directory} || exit 2
    {environment}
    export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}}
    eval "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {lines})" &
    group=$!
    trap 'kill -TERM -- "-$group" 2>/dev/null' TERM USR1
    while kill -0 -- "-$group" 2>/dev/null; do
        wait "$group" 2>/dev/null
        sleep 0.5
    done
    exit 0
fi
rm -f "$folder/preempted.json"
trap : TERM USR1
srun --ntasks=1 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} bash {script} step &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
if [ -f "$folder/results.json" ]; then
    exit 0
elif [ -f "$folder/preempted.json" ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
else
    echo "error: the run ended without a result and was not preempted: see its log." >&2
    exit 1
fi
"""


def submit(study: Study, cells: Sequence[Cell], options: Mapping[str, str], gpus_per_run: int | None) -> None:
    """Submit the runs that are neither finished nor in the queue, and say which job they are.

    Args:
        options: of sbatch, by their long names: {"partition": "gpu", "time": "12:00:00"}.

    Raises:
        UserError: Slurm is not here, or refuses.
    """
    with open(study.folder / ".slurm.lock", "a") as lock:  # so that two sweeps do not submit the same runs
        fcntl.lockf(lock, fcntl.LOCK_EX)
        jobs = read_jobs(study.folder)
        queued = {run for job in jobs for run in queued_runs(job)}
        new = [cell for cell in cells if cell.name not in queued]
        if queued:
            print(f"{len(queued)} run(s) are in the queue already: squeue --me shows them.")
        if not new:
            print("There is nothing to submit.")
            return
        folder = study.folder / ".slurm" / f"{len(jobs):03d}"
        folder.mkdir(parents=True, exist_ok=True)
        script = write_job(folder, study, new, options, gpus_per_run)
        job = _run("sbatch", "--parsable", str(script)).strip().partition(";")[0]
        jobs.append({"job": job, "runs": [cell.name for cell in new]})
        write_atomically(study.folder / JOBS, (json.dumps(jobs, indent=1) + "\n").encode())
    print(f"Job {job}: {len(new)} run(s), logs beside their folders. The same command submits what will be missing,")
    print("and with --status it shows where they stand.")


def write_job(
    folder: Path, study: Study, cells: Sequence[Cell], options: Mapping[str, str], gpus_per_run: int | None
) -> Path:
    """Write the job's script and its lines to a folder; return the script.

    Raises:
        UserError: Slurm would give a run other GPUs than it trains on.
    """
    gpus = gpus_per_run or 1
    wanted = {"job-name": study.name, "time": "24:00:00", "gpus-per-node": str(gpus)} | dict(options)
    if wanted["gpus-per-node"] == "0" and not gpus_per_run:  # a run on a CPU
        gpus = 0
        del wanted["gpus-per-node"]
    elif wanted["gpus-per-node"].rpartition(":")[2] != str(gpus):  # a kind of GPU may stand before the number
        raise UserError(
            f"--slurm.gpus-per-node is {wanted['gpus-per-node']}, but a run trains on {gpus} GPU(s): give "
            "--gpus_per_run that number."
        )
    launcher = shlex.join([sys.executable, "-m", "accelerate.commands.launch"])
    lines = [cell.line(launch_options(gpus)).replace("accelerate launch", launcher, 1) for cell in cells]
    logs = [shlex.quote(os.path.abspath(cell.folder.with_name(f"{cell.folder.name}.log"))) for cell in cells]
    for cell in cells:
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
    places = {name: os.path.abspath(folder / name) for name in ("lines", "folders")}
    Path(places["lines"]).write_text("".join(f"{line} >> {log} 2>&1\n" for line, log in zip(lines, logs, strict=True)))
    Path(places["folders"]).write_text("".join(f"{os.path.abspath(cell.folder)}\n" for cell in cells))
    header = {"array": f"0-{len(cells) - 1}", "ntasks": "1"} | wanted
    header |= {"open-mode": "append", "output": os.path.abspath(folder / "%A_%a.log"), "signal": f"USR1@{SECONDS}"}
    script = folder / "job.sh"
    script.write_text(
        SCRIPT.format(
            header="\n".join(["#SBATCH --requeue", *(f"#SBATCH --{k}={_quoted(v)}" for k, v in header.items())]),
            environment="export " + " ".join(f"{name}={value}" for name, value in GRACE.items()),
            script=shlex.quote(os.path.abspath(script)),
            directory=shlex.quote(os.getcwd()),
            lines=shlex.quote(places["lines"]),
            folders=shlex.quote(places["folders"]),
        )
    )
    return script


def _quoted(value: str) -> str:
    """An option's value as a line of #SBATCH reads it: a space would end it, and # would begin a comment."""
    if re.fullmatch(r"[\w@%+=:,./~\[\]-]*", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs that were submitted for a study: {"job": id, "runs": [the name of each task's run]}.

    Raises:
        UserError: the file that says so is damaged.
    """
    file = folder / JOBS
    try:
        return json.loads(file.read_text()) if file.exists() else []
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}), so that the study's jobs are not known: make sure by `squeue` that none is "
            "left, and remove it."
        ) from None


def queued_runs(job: Mapping[str, Any]) -> list[str]:
    """Those runs of a job that wait in the queue or run."""
    try:
        text = _run("squeue", "--noheader", "--array", "--format=%K", "--jobs", str(job["job"]))
    except UserError as error:
        if "Invalid job id" in str(error):  # Slurm has forgotten it, because it ended long ago
            return []
        raise
    return [job["runs"][int(task)] for task in text.split() if task.isdigit()]


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError(
            f"There is no {command[0]} here: run this on a machine of the cluster, or choose another --launcher."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} does not answer: try again when Slurm is up.") from None
    if done.returncode:
        raise UserError(f"{command[0]} refuses ({done.stderr.strip()}): change the --slurm options and try again.")
    return done.stdout
