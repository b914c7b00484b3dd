"""python -m benchmark sweep STUDY [--output_dir FOLDER] [--launcher NAME] [--section.key value ...]

Train what is missing of a study: each run is one `accelerate launch train.py --recipe ...` in FOLDER/<setting>/. First
every run is checked, datasets are prepared and weights fetched. The same command resumes what was interrupted.

Every option of sbatch has a flag, such as --slurm.partition NAME and --slurm.time 12:00:00; without GPUs it takes
--slurm.gpus-per-node 0. Jobs on Hugging Face take --hf_jobs.flavor NAME, and --hf_jobs.timeout, --hf_jobs.image,
--hf_jobs.namespace and --hf_jobs.source. Recipe keys hold for all runs.
"""

import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark.errors import UserError, as_sentence
from benchmark.recipe.parser import CommandParser, whole_number_above_0
from benchmark.study.study import Cell, Study, load_study

LAUNCHERS = ("local", "slurm", "print", "hf_jobs")
REDRAW = 2.0  # seconds


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark sweep", description=__doc__)
    parser.add_argument("study", metavar="STUDY", type=Path, help="a study file, such as recipes/studies/tiny.yaml")
    parser.add_argument("--output_dir", type=Path, metavar="FOLDER", help="runs/ and the file's name by default")
    parser.add_argument(
        "--recipe",
        nargs="+",
        default=[],
        metavar="FILE",
        help="for all runs, after the settings' files; keys that a setting or an encoder sets itself stay",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local", help="where the runs go (%(default)s)")
    parser.add_argument("--status", action="store_true", help="print where the runs stand, and stop")
    parser.add_argument("--no_prepare", action="store_true", help="neither prepare datasets nor fetch weights here")
    parser.add_argument("--gpus_per_run", type=whole_number_above_0, metavar="N", help="GPUs of each run (1)")
    parser.add_argument(
        "--jobs", type=whole_number_above_0, default=1, metavar="N", help="runs beside each other on a CPU (1)"
    )
    args, rest = parser.parse_known_args(arguments)
    options, overrides = launcher_options(args.launcher, rest)
    study = load_study(args.study, overrides, args.output_dir, args.recipe)
    if args.status:
        from benchmark.study.status import status_table, study_status

        print(status_table(study_status(study.cells)))
        return
    if args.gpus_per_run and args.jobs > 1:
        raise UserError("--jobs is for CPUs and --gpus_per_run for GPUs: leave one out.")
    missing, faults = check(study, args.gpus_per_run or 1)
    if not args.no_prepare and args.launcher != "hf_jobs":
        if changed := compare([cell for cell in study.cells if cell not in faults and cell not in missing]):
            tell_faults(changed, [], note=False)  # before other runs are trained on other data than these
        faults |= prepare(missing)
        missing = [cell for cell in missing if cell not in faults]
    tell_faults(faults, missing, note=args.launcher != "print")
    if args.launcher == "print":
        from benchmark.launchers.local import launch_options

        launch = launch_options(args.gpus_per_run) if args.gpus_per_run else []  # else the machine of the line decides
        print("\n".join(cell.line(launch) for cell in missing))
        sys.exit(1 if faults else 0)
    study.write()
    if args.launcher == "local":
        sys.exit(run_locally(study, missing, args) or (1 if faults else 0))
    launcher = importlib.import_module(f"benchmark.launchers.{args.launcher}")
    launcher.submit(study, missing, options, args.gpus_per_run)
    sys.exit(1 if faults else 0)


def check(study: Study, processes: int) -> tuple[list[Cell], dict[Cell, str]]:
    """Check every run as `train.py --dry_run` does: those that are to run, and what is wrong with those that cannot.

    Args:
        processes: of each run, over which its steps are split.
    """
    from benchmark.recipe.identity import identity
    from benchmark.reporting.run_folder import RunFolder
    from benchmark.training.build import check_model
    from benchmark.training.memory import plan_without_trial

    faults: dict[Cell, str] = {}
    checked: dict[str, str | None] = {}
    missing = []
    for cell in study.cells:
        recipe = cell.recipe
        train, model = recipe.train, repr((recipe.model, recipe.data, recipe.loss))  # what check_model reads
        try:
            if RunFolder(cell.folder, identity(recipe)).finished_results("auto"):
                continue
            plan_without_trial(train.global_batch_size, processes, train.micro_batch_size)
        except UserError as error:
            faults[cell] = str(error)
            continue
        if model not in checked:
            checked[model] = _fault(check_model, recipe)
        if sentence := checked[model]:
            faults[cell] = sentence
        else:
            missing.append(cell)
    return missing, faults


def compare(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Which finished runs have scores that do not hold for the data that are there now, and why."""
    from accelerate import PartialState

    from benchmark.recipe.identity import identity
    from benchmark.reporting.run_folder import RunFolder
    from benchmark.training.datasets import prepare_datasets
    from benchmark.training.loop import check_data
    from data_scripts.archive import MissingArchive
    from data_scripts.errors import DatasetError

    found: dict[str, Any] = {}  # by the data of a recipe: its datasets, or why there are none

    def check_cell(cell: Cell) -> None:
        recipe, folder = cell.recipe, RunFolder(cell.folder, identity(cell.recipe))
        if (data := repr(recipe.data)) not in found:
            try:
                found[data] = prepare_datasets(recipe, PartialState())
            except MissingArchive as error:
                print(f"The data of {cell.name} could not be compared: {error}", file=sys.stderr)
                found[data] = None
            except (DatasetError, UserError) as error:
                found[data] = error
        if isinstance(found[data], Exception):
            raise found[data]
        results = folder.finished_results("auto")
        if found[data] and results:
            check_data("the run", results, recipe.data.train, found[data])

    return {cell: sentence for cell in cells if (sentence := _fault(check_cell, cell))}


def prepare(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Build the datasets and fetch the weights of all runs, once; what is wrong with those that cannot start."""
    from accelerate import PartialState

    from benchmark.training.datasets import prepare_datasets
    from benchmark.training.init_from import fetch_weights

    done: dict[str, str | None] = {}
    faults: dict[Cell, str] = {}
    for cell in cells:
        recipe = cell.recipe
        for needed, get, arguments in (
            (repr(recipe.data), prepare_datasets, (recipe, PartialState())),
            (repr(recipe.model), fetch_weights, (recipe,)),
        ):
            if needed not in done:
                done[needed] = _fault(get, *arguments)
            if sentence := done[needed]:
                faults[cell] = sentence
    return faults


def _fault(function: Callable[..., Any], *arguments: Any) -> str | None:
    """What a user can fix in what `function` is called with; None where it works."""
    try:
        function(*arguments)
    except Exception as error:
        if (sentence := as_sentence(error)) is None:
            raise
        return sentence
    return None


def tell_faults(faults: dict[Cell, str], others: Sequence[Cell], note: bool) -> None:
    """Say which runs cannot start, each reason once, and note it for the table and the report.

    Raises:
        UserError: there is no other run.
    """
    from benchmark.study.status import note_failure

    told = []
    for sentence in dict.fromkeys(faults.values()):
        names = [cell.name for cell, fault in faults.items() if fault == sentence]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        told.append(f"{names[0]}{more}: {sentence}")
    if faults and not others:
        raise UserError("\n".join([f"No run can start; fix {len(told)} fault(s):", *told]))
    for line in told:
        print(f"error: {line}", file=sys.stderr)
    for cell, sentence in faults.items():
        if note:
            note_failure(cell.folder, sentence)


def run_locally(study: Study, missing: Sequence[Cell], args) -> int:
    """Run what is missing on this machine and say how it ended; the exit status."""
    from benchmark.launchers.local import LocalSweep, find_places
    from benchmark.study.status import FAILED, log_file, status_table, study_status
    from benchmark.training.launch import num_cores

    devices = gpu_names()
    if not devices and args.gpus_per_run:
        raise UserError("--gpus_per_run needs GPUs, and there are none here: leave it out, or give --jobs.")
    live = LiveTable(study.cells) if sys.stdout.isatty() else None
    sweep = LocalSweep(
        find_places(devices, args.gpus_per_run or 1, args.jobs, num_cores()),
        say=(lambda text: None) if live else (lambda text: print(text, flush=True)),
        show=live.draw if live else lambda: None,
    )
    ended = sweep.run(missing)
    if live:
        live.clear()
    statuses = study_status(study.cells)
    print(status_table(statuses))
    failed = [(cell, status) for cell, status in statuses.items() if status.state == FAILED]
    for cell, status in failed:
        print(f"{cell.name} failed: {status.sentence} (log: {log_file(cell.folder)})")
    if ended:
        print("Ended early; what ran is saved: the same command continues.")
        return os.EX_TEMPFAIL
    print(
        f"Next: python -m benchmark report {study.folder}"
        if not failed
        else "The same command tries failed runs again."
    )
    return 1 if failed else 0


def gpu_names() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


class LiveTable:
    """The table of a study on a terminal, drawn again over itself."""

    def __init__(self, cells: Sequence[Cell]):
        self.cells, self.lines, self.drawn_at = cells, 0, 0.0

    def draw(self) -> None:
        from benchmark.study.status import status_table, study_status

        if time.monotonic() - self.drawn_at < REDRAW:
            return
        width, height = shutil.get_terminal_size()
        text = status_table(study_status(self.cells), most=height - 6)
        lines = [line[: width - 1] for line in text.splitlines()]
        self.clear()
        print("\n".join(lines), flush=True)
        self.lines, self.drawn_at = len(lines), time.monotonic()

    def clear(self) -> None:
        """Remove what was drawn."""
        if self.lines:
            print(f"\x1b[{self.lines}F\x1b[J", end="")
        self.lines = 0


def launcher_options(launcher: str, rest: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """`--slurm.partition x` and the like of the chosen launcher, by name, and the other flags.

    Raises:
        UserError: an option of another launcher.
    """
    options: dict[str, str] = {}
    others: list[str] = []
    left = list(rest)
    while left:
        flag = left.pop(0)
        section, dot, name = flag.removeprefix("--").partition(".")
        if not (flag.startswith("--") and dot and section in ("slurm", "hf_jobs")):
            others.append(flag)
            continue
        if section != launcher:
            raise UserError(f"{flag} is for --launcher {section}: leave it out, or choose that launcher.")
        name, equals, value = name.partition("=")
        if not equals:
            if not left or left[0].startswith("--"):
                raise UserError(f"{flag} has no value; write {flag} VALUE.")
            value = left.pop(0)
        options[name] = value
    return options, others
