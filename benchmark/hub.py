"""The Hub: a model by its folder or its name, and a run that is pushed while it trains.

Whoever is logged in (`hf auth login`, or HF_TOKEN) is who pushes; no credentials pass through here.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
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
from huggingface_hub.utils._http import default_client_factory
from safetensors import SafetensorError
from torch import Tensor

from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.image_processing import processor
from benchmark.models.modeling import SegmentationModel

logger = logging.getLogger(__name__)
ATTEMPTS = 3  # at one push
WAITS = (0.25, 0.5, 1.0, 2.0, 4.0)  # seconds before one request of a push is made again
PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be otherwise a moment later
TIMEOUT = 60.0  # seconds without a byte
NEEDED = ("*.json", "*.safetensors", "recipe.yaml")  # of a published run, to load and to score its model


def model_folder(name: str) -> Path:
    """The folder of a model that is given by its folder or by its name on the Hub, from where it is downloaded.

    Raises:
        UserError: there is no such model, or it cannot be had.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            inside = folder / "model"
            hint = inside if (inside / "config.json").exists() else "one that holds a config.json, such as runs/x/model"
            raise UserError(f"{name} is not a model folder: name {hint}.")
    else:
        folder = _download(name)
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != SegmentationConfig.model_type:
        raise UserError(f"{name} is not a model of this project: its config.json does not say so; name another one.")
    return folder


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise UserError(f"There is no model folder {name}: name one, or a model on the Hub as user/name.")
    try:
        return Path(snapshot_download(name, allow_patterns=list(NEEDED)))
    except HFValidationError:
        raise UserError(f"{name} is neither a folder nor a name that a model on the Hub can have.") from None
    except GatedRepoError:
        raise UserError(f"The owner of {name} on the Hub wants to be asked first: ask there, and log in.") from None
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
        raise UserError(f"The Hub does not hand out {name} ({_reason(error)}): ask its owner for access.") from None
    except (httpx2.HTTPError, OSError) as error:
        raise UserError(f"The download of {name} broke off ({_reason(error)}): run the same command again.") from None


def beside(folder: Path, file: str) -> Path | None:
    """A file of the run that a model folder belongs to: in it on the Hub, above it in a run folder; None if nowhere."""
    return next((place / file for place in (folder, folder.parent) if (place / file).exists()), None)


def load_model(folder: Path) -> SegmentationModel:
    """The model of a folder, in eval mode; one sentence where its weights are missing, torn or of another shape."""
    try:
        return SegmentationModel.from_pretrained(folder).eval()
    except SafetensorError:
        raise UserError(f"The weights in {folder} are torn: save or download them again.") from None
    except OSError:
        raise UserError(f"{folder} has no weights (model.safetensors): save or download the model again.") from None


def write_snapshot(
    folder: Path,
    run_folder: Path,
    *,
    model: SegmentationModel,
    weights: dict[str, Tensor],
    results: dict[str, Any] | None,
    card: str,
    picture: bytes | None = None,
) -> None:
    """Write to `folder` what a run is on the Hub: copies, so that training may go on beside the push.

    Args:
        run_folder: its recipe.yaml and tensorboard/ are taken as they are.
        weights: the model's, whole and unwrapped.
        results: what results.json holds; None before the first evaluation.
        card: README.md.
        picture: panel.png, to which the card points.
    """
    model.save_pretrained(folder, state_dict=weights)
    processor(model.config).save_pretrained(folder)
    shutil.copy(run_folder / "recipe.yaml", folder)
    if (run_folder / "tensorboard").exists():
        shutil.copytree(run_folder / "tensorboard", folder / "tensorboard")
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if picture is not None:
        (folder / "panel.png").write_bytes(picture)
    (folder / "README.md").write_text(card)


class Pusher:
    """Pushes snapshots of a run to one repository, each in one commit, from a thread of its own.

    A push that fails is tried again and then warned about; it never ends the run. While one is under way the next is
    left out, but for the last one, which is waited for.

    Args:
        repo_id: user/name; made where it is not there.
        private: of a repository that is made.
        folder: the run's; snapshots lie under it while they are pushed.

    Raises:
        UserError: nobody is logged in, the name is not one, or it may not be written.
    """

    def __init__(self, repo_id: str, *, private: bool, folder: Path):
        self.repo_id, self.private = repo_id, private
        self.aside = folder / ".push"
        shutil.rmtree(self.aside, ignore_errors=True)  # what an interrupted run left
        huggingface_hub.set_client_factory(patient_client)
        disable_progress_bars()
        self.verbosity = hub_logging.get_verbosity()
        hub_logging.set_verbosity_error()  # its warnings hold signed addresses; ours say what matters
        self.api = HfApi()
        self._create()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self.running: Future | None = None

    def push(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a folder and push it, both in the background; not while an earlier push is under way."""
        if not self.is_pushing():
            self.running = self.thread.submit(self._push, write, f"Step {step}")

    def is_pushing(self) -> bool:
        return self.running is not None and not self.running.done()

    def finish(self, write: Callable[[Path], None]) -> bool:
        """Wait for the push under way, push what `write` fills a folder with, wait; whether it is on the Hub now."""
        if self.running is not None:
            self.running.result()
        done = self._push(write, "The finished model")
        self.close()
        return done

    def close(self) -> None:
        """Wait for the push under way, if any, and leave the Hub's client as it was found."""
        self.thread.shutdown()
        shutil.rmtree(self.aside, ignore_errors=True)
        huggingface_hub.set_client_factory(default_client_factory)
        enable_progress_bars()
        hub_logging.set_verbosity(self.verbosity)

    def _create(self) -> None:
        if huggingface_hub.get_token() is None:
            raise UserError("output.hub_model_id needs a login to the Hub: run 'hf auth login', or take the key away.")
        try:
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
        except HFValidationError:
            raise UserError(f"output.hub_model_id must be user/name, not {self.repo_id}.") from None
        except Exception as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status in (400, 401, 402, 403, 404):
                raise UserError(
                    f"You may not push to {self.repo_id} (the Hub says {status}): name another output.hub_model_id, or "
                    "log in with a token that may write."
                ) from None
            logger.warning("%s could not be made on the Hub (%s); each push tries again.", self.repo_id, _reason(error))

    def _snapshot(self, write: Callable[[Path], None]) -> Path | None:
        shutil.rmtree(self.aside, ignore_errors=True)
        try:
            self.aside.mkdir()
            write(self.aside)
        except Exception as error:  # a full disk, for which safetensors has an exception of its own
            shutil.rmtree(self.aside, ignore_errors=True)  # checkpoints need the place
            logger.warning("A push to %s was left out (%s).", self.repo_id, error)
            return None
        return self.aside

    def _push(self, write: Callable[[Path], None], message: str) -> bool:
        folder = self._snapshot(write)
        if folder is None:
            return False
        operations = [
            CommitOperationAdd(path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
                # What was uploaded by an attempt that failed later is not uploaded again: operations remember it.
                self.api.create_commit(self.repo_id, operations, commit_message=message)
                return True
            except Exception as error:  # whatever happens between here and the Hub, training goes on
                reason = _reason(error)
            if attempt < ATTEMPTS:
                time.sleep(2.0**attempt)
        logger.warning("%s could not be pushed to %s (%s); the run goes on without.", message, self.repo_id, reason)
        return False


def patient_client() -> httpx2.Client:
    """huggingface_hub's HTTP client, but a POST that is refused for a passing reason is made again after a while.

    The library itself does so for some of a push's requests and not for others, the commit among them.
    """
    client = default_client_factory()
    client.timeout = TIMEOUT
    send_once = client.send

    def send(request: httpx2.Request, **options) -> httpx2.Response:
        for wait in WAITS if request.method == "POST" else ():
            try:
                response = send_once(request, **options)
                if response.status_code not in PASSING:
                    return response
                response.close()
            except httpx2.TransportError:
                pass
            time.sleep(wait)
        return send_once(request, **options)

    client.send = send
    return client


def _reason(error: Exception) -> str:
    """Why the Hub was not reached or refused, in few words and without URLs, which may be signed."""
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return type(error).__name__
