"""The Hub: a model by its folder or its name, and a run that is pushed while it trains.

The account that is logged in (`hf auth login`, or HF_TOKEN) pushes; no credentials pass through here.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor

from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.reporting.model_folder import check_model_folder, save_model
from benchmark.reporting.run_folder import CONFUSION, METRICS, RECIPE, RESULTS, TENSORBOARD

logger = logging.getLogger(__name__)
ATTEMPTS = 6  # at one push; the library itself repeats some of a push's requests, but not the commit
TIMEOUT = 60.0  # seconds without a byte
PICTURE = "panel.png"
SCORES = (RESULTS, CONFUSION, PICTURE)  # of the weights beside them
NEEDED = ("*.json", "*.safetensors", RECIPE)  # of a published run, to load and to score its model


def find_model_folder(name: str) -> Path:
    """The folder of a model that is given by its folder or by its name on the Hub, from where it is downloaded.

    Raises:
        UserError: there is no such model, or it cannot be downloaded.
    """
    folder = Path(name)
    return check_model_folder(folder if folder.is_dir() else _download(name), name)


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise UserError(f"There is no model folder {name}: name one, or a model on the Hub as user/name.")
    try:
        return Path(snapshot_download(name, allow_patterns=list(NEEDED)))
    except HFValidationError:
        raise UserError(f"{name} is neither a folder nor a name that a model on the Hub can have.") from None
    except GatedRepoError:
        raise UserError(f"Access to {name} on the Hub has to be requested: request it there, and log in.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"There is no folder and no model on the Hub called {name} that you may read: check the name, "
            "or log in with 'hf auth login' if it is private."
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{name} is no folder, is not in the local cache, and the Hub cannot be reached: check the network "
            "(and HF_HUB_OFFLINE), or name a folder."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"The Hub refuses {name} ({_reason(error)}): ask its owner for access.") from None
    except (httpx2.HTTPError, OSError) as error:
        raise UserError(
            f"The download of {name} was interrupted ({_reason(error)}): run the same command again."
        ) from None


def write_snapshot(
    folder: Path,
    run_folder: Path,
    *,
    config: SegmentationConfig,
    weights: dict[str, Tensor],
    recipe_yaml: str,
    results: dict[str, Any] | None,
    card: str,
    picture: bytes | None = None,
) -> None:
    """Write to `folder` what a run is on the Hub: copies, so that training continues beside the push.

    Args:
        run_folder: its metrics and counts are copied, and its tensorboard/ under names without the host's.
        weights: the model's, whole and unwrapped.
        recipe_yaml: the recipe without this machine's paths.
        results: what results.json holds; None where these weights were not evaluated.
        card: README.md.
        picture: PICTURE, to which the card points; None where there is none, and the card does not.
    """
    save_model(folder, config, weights)
    (folder / RECIPE).write_text(recipe_yaml)
    for number, events in enumerate(sorted((run_folder / TENSORBOARD).glob("events.out.tfevents.*"))):
        (folder / TENSORBOARD).mkdir(exist_ok=True)
        stamp = events.name.split(".")[3]
        shutil.copy(events, folder / TENSORBOARD / f"events.out.tfevents.{stamp}.{number}")
    for name in (METRICS, CONFUSION):  # the latter is there when the run is finished
        if (run_folder / name).exists():
            shutil.copy(run_folder / name, folder / name)
    if results is not None:
        (folder / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
    if picture is not None:
        (folder / PICTURE).write_bytes(picture)
    (folder / "README.md").write_text(card)


def publish_space(name: str, title: str, files: Mapping[str, str]) -> str:
    """Publish a page as a static Space, which is created where it does not exist; return its address.

    Args:
        name: user/name.
        files: by name; report.html becomes the Space's page.

    Raises:
        UserError: nobody is logged in, or the Hub refuses.
    """
    if get_token() is None:
        raise UserError("A Space needs a login to the Hub: run 'hf auth login', or leave out --hub_space.")
    heading = json.dumps(title, ensure_ascii=False)
    card = f"---\ntitle: {heading}\nsdk: static\napp_file: index.html\n---\n\n{files['report.md']}"
    content = {**files, "index.html": files["report.html"], "README.md": card}
    operations = [CommitOperationAdd(path, text.encode()) for path, text in content.items() if path != "report.html"]
    try:
        if name.count("/") != 1:
            raise HFValidationError
        HfApi().create_repo(name, repo_type="space", space_sdk="static", exist_ok=True)
        HfApi().create_commit(name, operations, repo_type="space", commit_message="The report")
    except HFValidationError:
        raise UserError(f"--hub_space must be user/name, not {name}.") from None
    except Exception as error:  # whatever happens between here and the Hub
        raise UserError(f"{name} could not be published ({_reason(error)}): check that you may write there.") from None
    return f"{HfApi().endpoint}/spaces/{name}"


class Pusher:
    """Pushes snapshots of a run to one repository, each in one commit, from a thread of its own.

    A push that fails is retried and then warned about; it never ends the run. While one is running the next is left
    out, except the last one, which is waited for. A snapshot without scores takes those of older weights away.

    Args:
        repo_id: user/name; created where it does not exist.
        private: of a repository that is created.
        folder: the run's; snapshots are written below it while they are pushed.

    Raises:
        UserError: nobody is logged in, the name is not valid, or it must not be written.
    """

    def __init__(self, repo_id: str, *, private: bool, folder: Path):
        self.repo_id, self.private = repo_id, private
        self.snapshot = folder / ".push"
        get_session().timeout = TIMEOUT
        disable_progress_bars()
        self.verbosity = hub_logging.get_verbosity()
        hub_logging.set_verbosity_error()  # its warnings hold signed addresses; ours say what matters
        self.api, self.created = HfApi(), False
        self._create()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self.running: Future | None = None

    def push(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a folder and push it, both in the background; not while an earlier push is running."""
        if not self.is_pushing():
            self.running = self.thread.submit(self._push, write, f"Step {step}")

    def is_pushing(self) -> bool:
        return self.running is not None and not self.running.done()

    def finish(self, write: Callable[[Path], None]) -> bool:
        """Wait for the push that is running, push what `write` fills a folder with, wait; whether it arrived."""
        if self.running is not None:
            self.running.result()
        done = self._push(write, "The finished model")
        self.close()
        return done

    def close(self) -> None:
        """Wait for the push that is running, if any, and restore the library's own messages."""
        self.thread.shutdown()
        shutil.rmtree(self.snapshot, ignore_errors=True)
        enable_progress_bars()
        hub_logging.set_verbosity(self.verbosity)

    def _create(self) -> None:
        if get_token() is None:
            raise UserError(f"A push to {self.repo_id} needs a login to the Hub: run 'hf auth login', or do not push.")
        try:
            if self.repo_id.count("/") != 1:
                raise HFValidationError
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            self.created = True
        except HFValidationError:
            raise UserError(f"A model's name on the Hub must be user/name, not {self.repo_id}.") from None
        except Exception as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status in (400, 401, 402, 403, 404):
                raise UserError(
                    f"You may not push to {self.repo_id} (the Hub says {status}): name another repository, or log in "
                    "with a token that may write."
                ) from None
            logger.warning("%s cannot be created on the Hub (%s); each push retries.", self.repo_id, _reason(error))

    def _push(self, write: Callable[[Path], None], message: str) -> bool:
        folder = self.snapshot
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            write(folder)
        except Exception as error:  # a full disk, for which safetensors has an exception of its own
            shutil.rmtree(folder, ignore_errors=True)  # checkpoints need the space
            logger.warning("A push to %s was left out (%s).", self.repo_id, error)
            return False
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        old_scores = {name for name in SCORES if not (folder / name).exists()}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if not self.created:
                    self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
                    self.created = True
                # What was uploaded by an attempt that failed later is not uploaded again: operations remember it.
                outdated = old_scores.intersection(self.api.list_repo_files(self.repo_id))
                changes = [*operations, *map(CommitOperationDelete, sorted(outdated))]
                self.api.create_commit(self.repo_id, changes, commit_message=message)
                return True
            except Exception as error:  # whatever happens between here and the Hub, training continues
                reason = _reason(error)
            if attempt < ATTEMPTS:
                time.sleep(2.0**attempt)
        advice = "'python -m benchmark push' pushes a finished run"
        logger.warning("%s could not be pushed to %s (%s); %s.", message, self.repo_id, reason, advice)
        return False


def _reason(error: Exception) -> str:
    """Why the Hub was not reached or refused, in few words and without URLs, which may be signed."""
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return type(error).__name__
