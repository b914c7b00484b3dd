"""Encoders that are named as timm names models on the Hub: hf-hub:org/model, or hf-hub:org/model@revision."""

from typing import Any

import timm
from timm.models import load_model_config_from_hf

from .errors import ModelError

HUB = "hf-hub:"
REASONS = {  # by the names of the exceptions, because what travels with a model imports nothing but timm and torch
    "GatedRepoError": "access to it has to be requested; ask for it on its page, and log in with 'hf auth login'",
    "RepositoryNotFoundError": "there is no such repository; check the name, or log in if it is private",
    "RevisionNotFoundError": "it has no such revision; check what stands behind the @",
    "LocalEntryNotFoundError": "the Hub cannot be reached; check the network",
    "EntryNotFoundError": "it lacks {file}; name a repository with a model of timm",
    "HFValidationError": "this is no name on the Hub; write hf-hub:user/model",
    "AssertionError": "this is no name on the Hub; write hf-hub:user/model@revision",
    "KeyError": "its config.json names no architecture of timm; name a repository with a model of timm",
    "TypeError": "its config.json is not timm's; name a repository with a model of timm",
    "JSONDecodeError": "its config.json is damaged; name another repository",
    "SafetensorError": "its file is damaged; name another repository",
    "RuntimeError": "its file is damaged or holds more than tensors, and was not loaded; name another repository",
}


def hub_repository(name: str) -> str | None:
    """org/model or org/model@revision of an encoder that is on the Hub, None for one of timm's own names."""
    return name.removeprefix(HUB) if name.startswith(HUB) else None


def hub_error(name: str, error: Exception, file: str) -> ModelError:
    """The sentence for what went wrong while `file` of the encoder's repository was fetched or read."""
    kinds = (REASONS.get(kind.__name__) for kind in type(error).__mro__)
    reason = next(filter(None, kinds), f"the Hub cannot be reached ({type(error).__name__}); check the network")
    return ModelError(f"The encoder {name} cannot be loaded: {reason.format(file=file)}.")


def read_hub_encoder(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the config.json in the repository of `name` says, from the Hub or its cache.

    Returns:
        The source, of which `Encoder` makes the model without the Hub: {"architecture": timm's name of it,
        "model_args": keyword arguments}; and timm's pretrained_cfg: mean, std, input_size and more.

    Raises:
        ModelError: there is no such repository, it is gated, out of reach, or of no model that timm knows.
    """
    try:
        cfg, architecture, model_args = load_model_config_from_hf(name.removeprefix(HUB))
    except Exception as error:  # every layer of the network has its own exceptions
        raise hub_error(name, error, "config.json") from error
    if architecture not in timm.list_models():
        raise ModelError(
            f"The encoder {name} is a {architecture}, which timm {timm.__version__} does not know; "
            "update timm, or name another encoder."
        )
    if cfg.get("fixed_input_size") and "input_size" in cfg:  # as timm makes the model
        model_args = {"img_size": cfg["input_size"][1:], **model_args}
    return {"architecture": architecture, "model_args": model_args}, cfg
