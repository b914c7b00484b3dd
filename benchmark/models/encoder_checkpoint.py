"""Pretrained weights into an `Encoder`, from timm's hub or a local file, resampled to its crop and patch size."""

import copy
import importlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc, resample_patch_embed
from timm.models import load_state_dict, load_state_dict_from_hf, vision_transformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from .configuration import SegmentationConfig
from .encoder import Encoder, encoder_defaults, hub_error, hub_repository
from .errors import ModelError

FIRST_BLOCK = "blocks.0.norm1.weight"  # every transformer in timm's layout has it


class LoadReport(NamedTuple):
    """Where the weights came from, and the keys that the encoder has no place for (heads, necks, mask tokens)."""

    source: str
    leftover: list[str]

    def __str__(self) -> str:
        rest = f"; left out: {_listed(self.leftover, '{}')}" if self.leftover else ""
        return f"encoder weights from {self.source}{rest}"


def load_encoder_weights(encoder: Encoder, *, pretrained: bool = True, checkpoint: str | None = None) -> LoadReport:
    """
    Fill the encoder with pretrained weights; patch and position embeddings are resampled to its crop and patch size.

    Args:
        encoder: filled in place, whole or (where an error is raised) not at all.
        pretrained: fetch the weights timm names for `encoder.name`, or those in its repository on the Hub (from their
            cache where they are there); files that hold more than tensors are refused.
        checkpoint: a .safetensors or torch file in timm's layout or in that of the model's authors where timm reads it
            (BEiT-3, SAM, DINOv2, ...), bare or under a `model` or `state_dict` key (averaged weights, where a file has
            both, are preferred); takes precedence over `pretrained`.

    Returns:
        The source ("random" without either) and the leftover keys. Nothing is ever missing: that is an error.

    Raises:
        ModelError: no network or no such weights; a file that is absent, damaged, or holds more than tensors; weights
            that lack something or are of another width, depth or architecture.
    """
    if checkpoint is not None:
        source, weights, img_size = str(checkpoint), _read(Path(checkpoint)), _crop_beside(Path(checkpoint))
    elif pretrained:
        (source, weights), img_size = download_weights(encoder.name), None
    else:
        return LoadReport("random", [])
    return fill_encoder(encoder, weights, source, img_size)


def fill_encoder(
    encoder: Encoder, weights: Mapping[str, object], source: str, img_size: tuple[int, int] | None = None
) -> LoadReport:
    """Fill the encoder with `weights` as `load_encoder_weights` does.

    Args:
        source: what an error calls the weights.
        img_size: (height, width) of the crop that they were trained at; None: the pretraining's, or that of a square.
    """
    weights, others = _without_prefix(weights)
    if img_size is None:
        _check_positions(weights, encoder, source)
    weights = _convert(weights, encoder, img_size)
    leftover = _check_fit(weights, encoder, source)
    encoder.backbone.load_state_dict(weights, strict=False)
    return LoadReport(source, leftover + others)


def _without_prefix(weights: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """The encoder's weights without what a trainer puts before their names, and the other keys.

    Trainers write backbone.*, encoder.*, module.*, teacher.backbone.* and more, and this project encoder.backbone.*;
    of a teacher and a student the teacher's are meant.
    """
    flat = dict(_flatten(weights))
    found = [key.removesuffix(FIRST_BLOCK) for key in flat if key.endswith(FIRST_BLOCK)]
    prefix = min(found, key=lambda p: ("teacher" not in p and "ema" not in p, len(p)), default="")
    own = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
    return own, [key for key in flat if not key.startswith(prefix)]


def _flatten(weights: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in weights.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_checkpoint(path: Path) -> None:
    """Raise ModelError where there is no such file."""
    if not path.is_file():
        raise ModelError(
            f"There is no checkpoint {path}; give model.checkpoint the path of a .safetensors or .pth file."
        )


def _read(path: Path) -> dict[str, Tensor]:
    check_checkpoint(path)
    try:
        return load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch's reader raises almost anything on a damaged file
        raise ModelError(
            f"The checkpoint {path} is damaged or holds more than tensors, and was not loaded; "
            "give model.checkpoint a .safetensors file, or a .pth file of tensors only."
        ) from error


def _crop_beside(path: Path) -> tuple[int, int] | None:
    """The crop of a model of this project whose config.json lies beside its weights; None where there is none."""
    try:
        config = json.loads((path.parent / "config.json").read_text())
        height, width = config["crop_size"]
        return (int(height), int(width)) if config["model_type"] == SegmentationConfig.model_type else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def download_weights(name: str) -> tuple[str, dict[str, Tensor]]:
    """timm's weights of a name and where they are from, by way of the cache; ModelError where there are none."""
    if repository := hub_repository(name):
        try:
            return repository, load_state_dict_from_hf(repository, weights_only=True)
        except Exception as error:
            raise hub_error(name, error, "model.safetensors or pytorch_model.bin") from error
    cfg = timm.get_pretrained_cfg(name)
    source = cfg.hf_hub_id or cfg.url
    if not source or (cfg.custom_load and not cfg.hf_hub_id):
        raise ModelError(
            f"timm has no pretrained weights of {name}; give model.checkpoint a file, or set model.pretrained to false."
        )
    try:
        if cfg.hf_hub_id:
            filename = {"filename": cfg.hf_hub_filename} if cfg.hf_hub_filename else {}
            return source, load_state_dict_from_hf(cfg.hf_hub_id, weights_only=True, **filename)
        return source, torch.hub.load_state_dict_from_url(cfg.url, map_location="cpu", weights_only=True)
    except Exception as error:  # every layer of the network has its own exceptions
        if type(error).__name__ in ("GatedRepoError", "RepositoryNotFoundError"):
            raise hub_error(f"{name} ({cfg.hf_hub_id})", error, "weights") from error
        raise ModelError(
            f"The pretrained weights of {name} could not be fetched from {source} ({type(error).__name__}); "
            "check the network, give model.checkpoint a file, or set model.pretrained to false."
        ) from error


def _check_positions(weights: Mapping[str, object], encoder: Encoder, source: str) -> None:
    """Raise ModelError where positions may be those of a square or of this crop, which has as many tokens."""
    table, ours = weights.get("pos_embed"), getattr(encoder.backbone, "pos_embed", None)
    if not isinstance(table, Tensor) or ours is None or table.shape != ours.shape:
        return
    (height, width), side = encoder.grid_size, math.isqrt(math.prod(encoder.grid_size))
    if height == width or side**2 != height * width:
        return
    native = encoder_defaults(encoder.name)
    if math.prod(native.img_size) != height * width * native.patch_size**2:  # else timm takes them for its own grid's
        raise ModelError(
            f"{source} has positions of {height * width:,} tokens, which may be {side}x{side} or {height}x{width}: "
            "name its run with model.init_from, or put its config.json beside the file."
        )


def _convert(
    weights: dict[str, object], encoder: Encoder, img_size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """The weights in timm's layout, at the encoder's crop and patch size, in fp32."""
    weights = {key: value.float() if _is_floating(value) else value for key, value in weights.items()}
    kernel = weights.get("patch_embed.proj.weight")
    embed = encoder.backbone.patch_embed
    same_grid = img_size == embed.img_size and isinstance(kernel, Tensor) and kernel.shape[2:] == embed.patch_size
    if same_grid:  # not through timm's filters, some of which take every grid for a square
        return {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    backbone = copy.copy(encoder.backbone)  # timm looks there for the size that positions are of
    backbone.pretrained_model_args = {"img_size": img_size or encoder_defaults(encoder.name).img_size}
    try:
        converted = _timm_filter(encoder)(dict(weights), backbone)
        converted = {key: value for key, value in converted.items() if isinstance(value, Tensor)}
        if encoder.architecture.startswith("beit3"):
            converted = {_beit3_final_norm(key): value for key, value in converted.items()}
        return {key: _resample(key, value, encoder.backbone) for key, value in converted.items()}
    except Exception:  # timm's filters may stumble over another architecture; unconverted, its shapes tell it apart
        return {key: value for key, value in weights.items() if isinstance(value, Tensor)}


def _timm_filter(encoder: Encoder) -> Callable[[dict, nn.Module], dict]:
    """The function by which timm converts and resamples weights for this family, with the options timm gives it."""
    module = importlib.import_module(type(encoder.backbone).__module__)
    # A model of one's own may have none: a vision transformer's weights are converted as timm's own are.
    filter_fn = getattr(module, "checkpoint_filter_fn", vision_transformer.checkpoint_filter_fn)
    options = {}
    if isinstance(encoder.backbone, VisionTransformer):
        options["adapt_layer_scale"] = True  # DeiT III's files say gamma_1 where timm says ls1.gamma
    if "flexi" in encoder.architecture or "radio" in encoder.architecture:
        options |= {"interpolation": "bilinear", "antialias": False}
    if "radio" in encoder.architecture:
        options["align_corners"] = any(
            size in encoder.architecture for size in ("base_patch16_radio_v3", "huge_patch16_radio_v3")
        )
    return partial(filter_fn, **options)


def _beit3_final_norm(key: str) -> str:
    """The final norm is `layer_norm` to torchscale, and `fc_norm` where timm's default pooling moved it to the head."""
    return re.sub(r"^(layer_norm|fc_norm)\.", "norm.", key)


def _resample(key: str, value: Tensor, backbone: nn.Module) -> Tensor:
    """What timm's filters leave at the pretraining's size: SAM's positions, and the patches of some families."""
    if key == "patch_embed.proj.weight" and value.ndim == 4:
        return resample_patch_embed(value, list(backbone.patch_embed.patch_size))
    if not isinstance(backbone, VisionTransformerSAM):
        return value
    if key == "pos_embed":
        return resample_abs_pos_embed_nhwc(value, list(backbone.patch_embed.grid_size))
    if key.endswith(("rel_pos_h", "rel_pos_w")):
        return _resample_distances(value, len(backbone.get_parameter(key)))
    return value


def _resample_distances(table: Tensor, length: int) -> Tensor:
    """(2m-1, C) -> (2n-1, C), linear in the distance, as SAM's own attention does when table and window differ."""
    if len(table) == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


def _check_fit(weights: dict[str, Tensor], encoder: Encoder, source: str) -> list[str]:
    """The keys of `weights` that the encoder has no place for; ModelError where it would not be the same network."""
    expected = encoder.backbone.state_dict()
    leftover = [key for key in weights if key not in expected]
    missing = [key for key in expected if key not in weights]
    wrong = [key for key in expected if key in weights and expected[key].shape != weights[key].shape]
    strange = [key for key in leftover if key.startswith("blocks.")]
    if not (missing or wrong or strange):
        return leftover
    if wrong == ["pos_embed"] and not missing and not strange:
        raise ModelError(
            f"{source} has {weights['pos_embed'].shape[1]} positions, which are neither {encoder.name}'s own nor those "
            "of a square: name the run with model.init_from, or put its config.json beside the file."
        )
    details = [_listed(missing, "it lacks {}"), _listed(strange, "the encoder has no {}")]
    if wrong:
        key = wrong[0]
        details.insert(0, f"{key} is {tuple(weights[key].shape)} there and {tuple(expected[key].shape)} here")
    raise ModelError(
        f"{source} ({_describe(weights)}) does not fit {encoder.name} ({_describe(expected)}): "
        f"{', '.join(filter(None, details))}; name the encoder it was made for with model.encoder."
    )


def _describe(weights: dict[str, Tensor]) -> str:
    """Depth and width of a transformer by its weights."""
    depth = 1 + max((int(key.split(".")[1]) for key in weights if re.match(r"blocks\.\d+\.", key)), default=-1)
    norm = weights.get("blocks.0.norm1.weight")
    return f"{depth} blocks of width {'unknown' if norm is None else len(norm)}"


def _listed(keys: list[str], sentence: str) -> str:
    """The first key, and how many more there are; nothing for no keys."""
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return sentence.format(keys[0] + more) if keys else ""


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
