"""The weights that a run starts from; of a trained model its encoder, and of its head what both's classes share."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmark.errors import UserError
from benchmark.models.encoder_checkpoint import check_checkpoint, download_weights, fill_encoder
from benchmark.models.modeling import SegmentationModel
from benchmark.recipe.schema import Recipe
from benchmark.reporting.hub import find_model_folder
from benchmark.reporting.model_folder import load_model


def fetch_weights(recipe: Recipe) -> None:
    """Put the weights that the recipe starts from into the cache, where they come from the network; a file is there.

    Raises:
        ModelError, UserError: there are none, or they cannot be fetched.
    """
    if recipe.model.init_from:
        if not Path(recipe.model.init_from).exists():
            find_model_folder(recipe.model.init_from)
    elif recipe.model.checkpoint:
        check_checkpoint(Path(recipe.model.checkpoint))
    elif recipe.model.pretrained:
        download_weights(recipe.model.encoder)


def start_from(model: SegmentationModel, name: str) -> list[str]:
    """Fill `model` with the weights of another one; return lines that say what was taken and what was not.

    Patch and position embeddings are resampled where crop or patch size differ. The head's layers are taken where both
    have the same head of the same size, and of its class layer the rows of the classes that both have, by name (see
    `shared_classes`).

    Args:
        name: a run folder, a model folder, or user/name on the Hub.

    Raises:
        UserError, ModelError: there is no such model, or its encoder is another one.
    """
    trained = load_model(find_model_folder(name))
    if trained.config.encoder != model.config.encoder:
        raise UserError(
            f"model.init_from {name} has the encoder {trained.config.encoder}, and model.encoder is "
            f"{model.config.encoder}: set model.encoder to the former, because results are compared by it."
        )
    weights, crop_size = trained.encoder.backbone.state_dict(), tuple(trained.config.crop_size)
    report = fill_encoder(model.encoder, weights, name, crop_size)
    return [str(report), _take_head(model, trained, name)]


@torch.no_grad()
def _take_head(model: SegmentationModel, trained: SegmentationModel, name: str) -> str:
    ours, theirs = model.head.state_dict(), trained.head.state_dict()
    layer = f"{model.head.class_layer_name}."
    same_kind = model.config.head == trained.config.head and all(
        key in theirs and (value.shape == theirs[key].shape or key.startswith(layer)) for key, value in ours.items()
    )
    if not same_kind:
        return f"the head is new: that of {name} is another one ({trained.config.head})"
    classes, known = (
        [config.id2label[index] for index in range(config.num_labels)] for config in (model.config, trained.config)
    )
    places = shared_classes(classes, known)
    shared = list(places.items())
    if len(ours[layer + "weight"]) == len(classes) + 1:  # the last row is "no object"
        shared.append((len(classes), trained.config.num_labels))
    to, from_ = (list(column) for column in zip(*shared, strict=True)) if shared else ([], [])
    for key, value in ours.items():
        if key.startswith(layer):
            value[to] = theirs[key][from_].to(value)
        else:
            value.copy_(theirs[key])
    taken = [label for index, label in enumerate(classes) if index in places]
    new = [label for index, label in enumerate(classes) if index not in places]
    return f"the head's rows from {name} for {', '.join(taken) or 'no class'}; new: {', '.join(new) or 'none'}"


def shared_classes(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """The places in `theirs` of the classes of `ours`, by their place there.

    Equal names go first. Of the names that are left, two that differ only in case and in the spaces around them are one
    class, unless another name of either side is like them: then nobody knows which is meant.
    """
    shared = {index: theirs.index(name) for index, name in enumerate(ours) if name in theirs}
    our_keys, their_keys = ([name.strip().casefold() for name in names] for names in (ours, theirs))
    once = {key for key, count in Counter(our_keys).items() if count == 1 and their_keys.count(key) == 1}
    return shared | {index: their_keys.index(key) for index, key in enumerate(our_keys) if key in once}
