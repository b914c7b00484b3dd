"""A study's runs as Hugging Face Jobs: each clones this repository, trains one run and pushes it to a private one.

What a job leaves is what it pushes; the next sweep fetches finished results from there.
"""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from benchmark.errors import UserError
from benchmark.launchers.local import launch_options
from benchmark.recipe.identity import difference, identity, public
from benchmark.recipe.schema import flatten
from benchmark.reporting.results import code_version
from benchmark.reporting.run_folder import CONFUSION, METRICS, RECIPE, RESULTS, read_results, write_atomically
from benchmark.study.study import Cell, Study

DEFAULTS = {"timeout": "24h", "image": "python:3.12", "namespace": None, "source": None}
ROOT = Path(__file__).resolve().parents[2]


def submit(study: Study, cells: Sequence[Cell], options: Mapping[str, str], gpus_per_run: int | None) -> None:
    """Fetch the results of runs that have ended, and start a job for each other one that has none.

    Args:
        options: `flavor`, such as a100-large; `timeout` of a job; its docker `image`; the `namespace` that pays, and
            to which runs are pushed; `source`, the git address of this code.

    Raises:
        UserError: an option is missing or unknown, nobody is logged in, the code was not pushed, or the Hub refuses.
    """
    chosen = _checked(options)
    source, commit = _code(chosen["source"])
    api = HfApi()
    try:
        namespace = chosen["namespace"] or api.whoami()["name"]
        _check_repositories([_repository(namespace, study, cell) for cell in study.cells])
        waiting = [cell for cell in cells if not _fetch(cell, _repository(namespace, study, cell))]
        jobs = api.list_jobs(status=["SCHEDULING", "RUNNING"], labels={"study": study.name}, namespace=namespace)
        running = {(job.labels or {}).get("run") for job in jobs}
        new = [cell for cell in waiting if _repository(namespace, study, cell).partition("/")[2] not in running]
        for cell in new:
            repository = _repository(namespace, study, cell)
            job = api.run_job(
                image=chosen["image"],
                command=["bash", "-c", job_script(cell, source, commit, repository, chosen["flavor"], gpus_per_run)],
                secrets={"HF_TOKEN": get_token()},
                flavor=chosen["flavor"],
                timeout=chosen["timeout"],
                labels={"study": study.name, "run": repository.partition("/")[2]},
                namespace=namespace,
            )
            print(f"{cell.name}: job {job.id}, pushes to {repository}")
    except HfHubHTTPError as error:
        raise UserError(
            f"The Hub refuses (status {error.response.status_code}): check that your token may start jobs and write to "
            "the namespace, and that the flavor exists."
        ) from None
    except (httpx2.HTTPError, LocalEntryNotFoundError):
        raise UserError("The Hub cannot be reached: check the network (and HF_HUB_OFFLINE), and try again.") from None
    fetched = len(cells) - len(waiting)
    print(f"{fetched} run(s) fetched, {len(waiting) - len(new)} in the queue, {len(new)} started.")


def job_script(cell: Cell, source: str, commit: str, repository: str, flavor: str, gpus_per_run: int | None) -> str:
    """The shell commands of a job.

    Raises:
        UserError: a recipe is not in this repository.
    """
    for file in cell.files:
        if Path(file).is_absolute() or not (ROOT / file).is_file():
            raise UserError(f"{file} is not in this repository, which jobs clone: add it, commit and push.")
    push = ("--output.hub_model_id", repository, "--output.hub_private", "true")
    pushed = Cell(cell.setting, cell.encoder, cell.seed, cell.files, (*cell.flags, *push), cell.folder)
    line = pushed.line(launch_options(0 if flavor.startswith("cpu") else gpus_per_run or 1))
    steps = [
        f"git clone --quiet {shlex.quote(source)} code",
        "cd code",
        f"git checkout --quiet {commit}",
        "pip install --quiet -e .",
    ]
    return " && ".join([*steps, line])


def _checked(options: Mapping[str, str]) -> dict[str, Any]:
    if unknown := [name for name in options if name not in ("flavor", *DEFAULTS)]:
        raise UserError(f"--hf_jobs.{unknown[0]} is not known: there are flavor, {', '.join(DEFAULTS)}.")
    if "flavor" not in options:
        raise UserError("Name the hardware with --hf_jobs.flavor, such as a100-large; `hf jobs hardware` lists all.")
    if get_token() is None:
        raise UserError("Jobs need a login to the Hub: run 'hf auth login'.")
    return {**DEFAULTS, **options}


def _code(source: str | None) -> tuple[str, str]:
    """The address and the commit that jobs clone.

    Raises:
        UserError: there is none, or it is not what is here.
    """
    if Path.cwd() != ROOT:
        raise UserError(f"Start this from {ROOT}, because jobs run in a clone of it.")
    version = code_version()
    if version.get("modified", True):
        raise UserError("Commit and push your changes first, because jobs clone this repository.")
    if source is None:
        done = subprocess.run(["git", "remote", "get-url", "origin"], capture_output=True, text=True, cwd=ROOT)
        source = done.stdout.strip()
    if not source.startswith("https://"):
        raise UserError("Name the https address from which jobs clone this code with --hf_jobs.source.")
    return source, version["commit"]


def _repository(namespace: str, study: Study, cell: Cell) -> str:
    return f"{namespace}/{study.name}-{cell.setting}-{cell.encoder}-seed{cell.seed}"


def _check_repositories(names: Sequence[str]) -> None:
    """Raise UserError where runs share a repository, or one's name is none that the Hub can have."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two runs would be pushed to {name}: rename a setting or an encoder of the study.")
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise UserError(
                f"{name} is no name for a repository on the Hub: use letters, digits, '-', '_' and '.' in the names of "
                "the study, its settings and its encoders, at most 96 in all."
            ) from None


def _fetch(cell: Cell, repository: str) -> bool:
    """Fetch a finished run's results into its folder, results.json last; whether there are any."""
    files = (RECIPE, CONFUSION, METRICS, RESULTS)
    with tempfile.TemporaryDirectory() as folder:
        try:
            snapshot_download(repository, allow_patterns=list(files), local_dir=folder)
        except RepositoryNotFoundError:
            return False
        there = Path(folder)
        if not all((there / name).exists() for name in files):
            return False
        shown = dict(flatten(public(cell.recipe)))  # what is pushed has no paths of the machine
        wanted = {key: shown[key] if isinstance(value, str) else value for key, value in identity(cell.recipe).items()}
        if different := difference(there / RECIPE, wanted):
            raise UserError(
                f"{repository} on the Hub holds a run of another recipe ({different}): rename the study's file, or "
                "remove the repository."
            )
        if read_results(there / RESULTS)["step"] < cell.recipe.train.steps:  # pushed while it trains
            return False
        cell.folder.mkdir(parents=True, exist_ok=True)
        for name in files[:-1]:
            shutil.copy(there / name, cell.folder / name)
        write_atomically(cell.folder / RESULTS, (there / RESULTS).read_bytes())
    return True
