"""A model as a folder that `from_pretrained` loads, with sums that are checked when it is loaded."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files

from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.heads import HEADS
from benchmark.models.image_processing import processor
from benchmark.models.meta import without_memory
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting.manifest import MANIFEST, Damaged, encode_manifest, entry, read_files, read_manifest
from benchmark.reporting.run_folder import MODEL, publish_files, writing

AGAIN = "Download the model again; of a run, remove its results.json and repeat its command, which writes both again"


def save_model(folder: Path, config: SegmentationConfig, weights: dict[str, Tensor]) -> None:
    """Write a model, its code, its image processor and the sums of its files to `folder`.

    Args:
        weights: whole and unwrapped, on any device.
    """
    with without_memory():  # no memory for its weights; FSDP has changed the class of the model that is trained
        model = SegmentationModel(config)
    with writing(folder / MODEL):
        model.save_pretrained(folder, state_dict=dict(weights))  # a copy, which transformers empties while it writes
        processor(config).save_pretrained(folder)
        _keep_one_head(folder, config.head)
        checked = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
        entries = {path.name: entry(path.read_bytes()) for path in checked if path.name != MANIFEST}
        (folder / MANIFEST).write_bytes(encode_manifest({}, entries))
    publish_files(folder)


def _keep_one_head(folder: Path, name: str) -> None:
    """Leave of the code in a model's folder what its own head needs: no other head is sent along."""
    head = HEADS[name]
    module = head.__module__.rpartition(".")[2]
    (folder / "heads.py").write_text(
        f'"""The head of this model."""\n\n'
        f'from .{module} import {head.__name__}\n\nHEADS = {{"{name}": {head.__name__}}}\n'
    )
    needed = [folder / "modeling.py", folder / "image_processing.py"]  # to which config.json's auto_map points
    needed += [Path(file) for entry in needed for file in get_relative_import_files(entry)]
    for file in set(folder.glob("*.py")) - set(needed):
        file.unlink()
    # transformers takes folders of one name, which all are called model, for the same code where this file is the same.
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))).hexdigest()
    with (folder / "configuration.py").open("a") as configuration:
        configuration.write(f"\n# This code: {code[:16]}\n")


def load_model(folder: Path) -> SegmentationModel:
    """The model of a folder, in eval mode.

    Raises:
        UserError: its files are missing, damaged, or not those that were saved together.
    """
    if (folder / MANIFEST).exists():  # which models that were saved by older versions lack
        try:
            read_files(folder, read_manifest(folder))
        except Damaged as error:
            raise UserError(
                f"{folder} is damaged: {error}. {AGAIN}, or remove {MANIFEST} if the change was intended."
            ) from None
    try:
        return SegmentationModel.from_pretrained(folder).eval()
    except SafetensorError:
        raise UserError(f"The weights in {folder} are torn. {AGAIN}.") from None
    except OSError:
        raise UserError(f"{folder} has no weights (model.safetensors). {AGAIN}.") from None


def check_model_folder(folder: Path, name: str) -> Path:
    """The folder, or model/ in it where it is a run's, if it holds a model of this project.

    Args:
        name: what the user called it.

    Raises:
        UserError: it does not.
    """
    if not (folder / "config.json").exists() and (folder / MODEL / "config.json").exists():
        folder /= MODEL
    if not (folder / "config.json").exists():
        raise UserError(f"{name} holds no model: name a finished run, or a folder that holds a config.json.")
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != SegmentationConfig.model_type:
        raise UserError(f"{name} is not a model of this project: its config.json does not say so; name another one.")
    return folder
