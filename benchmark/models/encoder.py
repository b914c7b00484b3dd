"""A vision transformer of timm as a segmentation encoder: images of one crop size in, a grid of tokens out."""

import difflib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import (
    PatchEmbed,
    RotaryEmbedding,
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    RotaryEmbeddingMRope,
)
from timm.models import load_model_config_from_hf
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from .errors import ModelError
from .meta import without_memory

HUB = "hf-hub:"
REASONS = {  # by the names of the exceptions, because what travels with a model imports nothing but timm and torch
    "GatedRepoError": "access to it has to be requested; ask for it on its page, and log in with 'hf auth login'",
    "RepositoryNotFoundError": "there is no such repository; check the name, or log in if it is private",
    "RevisionNotFoundError": "it has no such revision; check the part after the @",
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
PLAIN_TRANSFORMERS = (VisionTransformer, Eva, Beit, VisionTransformerRelPos, VisionTransformerSAM)
ROTARY_EMBEDDINGS = (
    RotaryEmbedding,
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    RotaryEmbeddingMRope,
)


class EncoderDefaults(NamedTuple):
    """What timm knows of a model: mean and std of pixels in [0, 1], pretraining's (height, width) and patch size."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    img_size: tuple[int, int]
    patch_size: int


class Encoder(nn.Module):
    """
    timm vision transformer at any crop and patch size, without what a dense model never uses.

    Classifier, pooling and SAM's neck are not there: every parameter takes part in every forward pass. The tokens are
    those of timm's `forward_features`, so after the final norm where the model has one there, without class and
    register tokens. Weights are random; `load_encoder_weights` loads others.

    Args:
        name: timm's name of the model, with or without the tag of its weights, or hf-hub:org/model.
        img_size: (height, width) of the crop in pixels, each a multiple of `patch_size`.
        patch_size: side of a square patch in pixels; need not be the pretraining's.
        source: what the model on the Hub is made of, as `read_hub_encoder` returns it; None: asked of the Hub.
        timm_kwargs: passed on to `timm.create_model` (depth, drop_path_rate, ...).

    Raises:
        ModelError: timm does not know the name, the model is no plain transformer, or patches do not divide the crop.
    """

    def __init__(
        self,
        name: str,
        img_size: tuple[int, int],
        patch_size: int,
        source: Mapping[str, Any] | None = None,
        **timm_kwargs,
    ):
        super().__init__()
        img_size = tuple(img_size)
        _check_divisible(img_size, patch_size)
        self.name = name
        on_hub = hub_repository(name) is not None
        self.source = read_hub_encoder(name)[0] if source is None and on_hub else source
        self.architecture: str = self.source["architecture"] if self.source else name
        self.patch_size = patch_size
        self.backbone = _create_backbone(self, img_size, **timm_kwargs)
        self.embed_dim: int = self.backbone.embed_dim
        self.grid_size: tuple[int, int] = tuple(self.backbone.patch_embed.grid_size)
        self.num_prefix_tokens: int = getattr(self.backbone, "num_prefix_tokens", 0)
        self.frozen = False
        self._tables_valid = False

    @property
    def blocks(self) -> nn.Module:
        """The transformer blocks, in order; iterable, each can be compiled by itself."""
        return self.backbone.blocks

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, height, width) normalised floats -> tokens (B, grid_h * grid_w, embed_dim), row by row."""
        if not self._tables_valid:
            self.init_non_persistent_buffers()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.backbone.forward_features(pixel_values)
        if tokens.ndim == 4:  # SAM: (B, C, grid_h, grid_w)
            return tokens.flatten(2).transpose(1, 2)
        return tokens[:, self.num_prefix_tokens :]

    def layers(self, pixel_values: Tensor, blocks: int | list[int], keep_prefix_tokens: bool = False) -> list[Tensor]:
        """The tokens after some blocks, each (B, grid_h * grid_w, embed_dim), before the final norm.

        Args:
            pixel_values: as in `forward`.
            blocks: n for the last n blocks, or a list of their numbers; later blocks do not run.
            keep_prefix_tokens: leave class and register tokens in front of the others.
        """
        if not self._tables_valid:
            self.init_non_persistent_buffers()
        is_sam = isinstance(self.backbone, VisionTransformerSAM)
        # Only where there are some: some of timm's models ask for them otherwise, and fail.
        options = {"return_prefix_tokens": True} if keep_prefix_tokens and self.num_prefix_tokens else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            layers = self.backbone.forward_intermediates(
                pixel_values,
                indices=blocks,
                stop_early=True,
                output_fmt="NCHW" if is_sam else "NLC",
                intermediates_only=True,
                **options,
            )
        if is_sam:
            return [tokens.flatten(2).transpose(1, 2) for tokens in layers]
        return [torch.cat(parts[::-1], dim=1) if isinstance(parts, tuple) else parts for parts in layers]

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, embed_dim) after the model's final norm, or a layer norm without weights where it has none."""
        norm = getattr(self.backbone, "norm", None)
        if norm is None or isinstance(norm, nn.Identity):
            return F.layer_norm(tokens, tokens.shape[-1:])
        return norm(tokens)

    def freeze(self) -> None:
        """Train no parameter, and keep dropout and statistics in eval mode permanently."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Encoder":
        """As `nn.Module.train`, but a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    @torch.compiler.disable
    @torch.inference_mode(False)
    def init_non_persistent_buffers(self) -> None:
        """
        Rebuild what no checkpoint holds (rotary tables and the like), rotary tables in fp32.

        The forward pass calls it whenever the tables may be stale: `from_pretrained` leaves such buffers uninitialised,
        and a cast to bf16 would round the angles of far positions.
        """
        for module in self.backbone.modules():
            if isinstance(module, ROTARY_EMBEDDINGS):
                _allocate_in_fp32(module)
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
        self._tables_valid = True

    def _apply(self, fn, recurse: bool = True) -> "Encoder":
        self._tables_valid = False  # every .to(), .bfloat16() or .to_empty() comes through here
        return super()._apply(fn, recurse)


def _allocate_in_fp32(module: nn.Module) -> None:
    for key in module._non_persistent_buffers_set:
        buffer = module._buffers[key]
        if buffer is not None and buffer.is_floating_point():
            module._buffers[key] = torch.empty_like(buffer, dtype=torch.float32)


def encoder_defaults(name: str) -> EncoderDefaults:
    """What timm knows of the model, without network unless it is on the Hub; ModelError is raised as by `Encoder`."""
    source, cfg = read_hub_encoder(name) if hub_repository(name) is not None else (None, None)
    native = _native_model(name, source, cfg)
    cfg = native.pretrained_cfg
    patch_size = native.patch_embed.patch_size[0]
    return EncoderDefaults(tuple(cfg["mean"]), tuple(cfg["std"]), tuple(cfg["input_size"][1:]), patch_size)


def _native_model(name: str, source: Mapping[str, Any] | None, cfg: Mapping[str, Any] | None = None) -> nn.Module:
    """The model as timm makes it, without memory for its weights."""
    model = _native_hub_model(name, source, cfg) if source else _native_timm_model(name)
    is_plain = isinstance(model, PLAIN_TRANSFORMERS) and isinstance(model.patch_embed, PatchEmbed)
    if not is_plain or model.patch_embed.proj.in_channels != 3:
        raise ModelError(
            f"{name} is not a plain vision transformer of RGB images with one grid of tokens; "
            "choose one, such as vit_base_patch14_dinov2."
        )
    return model


@lru_cache
def _native_timm_model(name: str) -> nn.Module:
    known = timm.list_models() + timm.list_pretrained()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or ["one of `python -m benchmark encoders`"]
        raise ModelError(f"timm knows no encoder {name!r}; did you mean {' or '.join(nearest)}?")
    with without_memory():
        return timm.create_model(name, num_classes=0)


def _native_hub_model(name: str, source: Mapping[str, Any], cfg: Mapping[str, Any] | None) -> nn.Module:
    try:
        with without_memory():
            return timm.create_model(
                source["architecture"], pretrained_cfg=cfg, **{**source["model_args"], "num_classes": 0}
            )
    except Exception as error:  # what a stranger's config.json asks for may fail anywhere
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"timm cannot make {name} of what its config.json says ({reason}); update timm, or name another encoder."
        ) from error


def _create_backbone(encoder: Encoder, img_size: tuple[int, int], **timm_kwargs) -> nn.Module:
    native = _native_model(encoder.name, encoder.source)
    kwargs = dict(encoder.source["model_args"]) if encoder.source else {}
    kwargs |= {"img_size": img_size, "patch_size": encoder.patch_size, "num_classes": 0}
    if getattr(native, "dynamic_img_size", False):
        kwargs["dynamic_img_size"] = False  # the crop is fixed: positions are made once, not in every forward
    if encoder.architecture.startswith("beit3"):
        kwargs["global_pool"] = "token"  # timm's default, "avg", moves the final norm after the pooling
    is_sam = isinstance(native, VisionTransformerSAM)
    if is_sam:
        kwargs["window_size"] = _scaled_window(native, img_size, encoder.patch_size)
    backbone = timm.create_model(encoder.architecture, **(kwargs | timm_kwargs))
    backbone.prune_intermediate_layers(1, prune_norm=is_sam, prune_head=True)
    return backbone


def _scaled_window(native: VisionTransformerSAM, img_size: tuple[int, int], patch_size: int) -> int:
    """SAM's attention window in tokens: it keeps its share (14 of 64 in pretraining) of the grid's shorter side."""
    native_window = max(block.window_size for block in native.blocks)
    return max(1, round(native_window * min(img_size) / patch_size / min(native.patch_embed.grid_size)))


def _check_divisible(img_size: tuple[int, int], patch_size: int) -> None:
    if any(size % patch_size for size in img_size):
        nearest = [max(1, round(size / patch_size)) * patch_size for size in img_size]
        raise ModelError(
            f"A crop of {img_size[0]}x{img_size[1]} does not divide into patches of {patch_size}x{patch_size}; "
            f"the nearest crop that does is {nearest[0]}x{nearest[1]}."
        )


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
        "model_args": keyword arguments, without dropout's, whose draws no checkpoint has}; and timm's pretrained_cfg.

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
    model_args = {key: value for key, value in model_args.items() if not key.endswith(("drop_rate", "drop_path_rate"))}
    return {"architecture": architecture, "model_args": model_args}, cfg
