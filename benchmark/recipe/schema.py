"""The recipe: every number that changes a result, typed and checked before anything is loaded.

A default is part of the meaning of every recipe that leaves its key out: it never changes. A new behaviour is a new key
whose default is what was done before.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from benchmark.errors import UserError
from benchmark.recipe.heads import Eomt, Mask2Former
from benchmark.recipe.key import ENCODER, MACHINE, key
from data_scripts.custom import Custom


@dataclass(frozen=True)
class Data:
    """Which images are trained and validated on, and how they are cut."""

    train: str = key("shapes", "the dataset to train on")
    val: list[str] = key(["shapes"], "the datasets to validate on; the first one's mIoU counts")
    root: str = key("data", "the folder that holds the archives, as they were downloaded", MACHINE)
    cache_dir: str | None = key(None, "where the Arrow files go; null: HuggingFace's own cache", MACHINE)
    crop_size: PositiveInt | list[PositiveInt] = key(512, "pixels; or [height, width]")
    num_workers: NonNegativeInt | Literal["auto"] = key(
        4, "processes that load images, for each training process; auto: from the machine's cores", MACHINE
    )
    allow_partial: bool = key(False, "accept archives with fewer images than the official split")
    custom: Custom = field(default_factory=Custom)

    def __post_init__(self) -> None:
        if isinstance(self.crop_size, list) and len(self.crop_size) != 2:
            raise UserError(f"data.crop_size must be one number or [height, width], not {self.crop_size}.")
        if not self.val or len(set(self.val)) < len(self.val):
            raise UserError(f"data.val must name at least one dataset, and none of them twice, not {self.val}.")

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the crop, in pixels."""
        height, width = self.crop_size if isinstance(self.crop_size, list) else (self.crop_size, self.crop_size)
        return int(height), int(width)


@dataclass(frozen=True)
class Augment:
    """Random changes of a training image: colour jitter, flip, scale, crop."""

    brightness: NonNegativeFloat = key(32 / 255, "the factor is uniform in 1 +- this")
    contrast: NonNegativeFloat = key(0.5, "the factor is uniform in 1 +- this")
    saturation: NonNegativeFloat = key(0.5, "the factor is uniform in 1 +- this")
    hue: ClosedUnitInterval = key(18 / 360, "the turn of the colour circle is uniform in +- this; at most 0.5")
    jitter_probability: ClosedUnitInterval = key(0.5, "of each of the four colour operations")
    flip_probability: ClosedUnitInterval = key(0.5, "of a horizontal flip")
    min_scale: PositiveFloat = key(0.5, "the scale is uniform from here; at 1 the image just fits into the crop")
    max_scale: PositiveFloat = key(2.0, "to here")
    max_redraws: NonNegativeInt = key(20, "times that a crop without a labelled pixel is drawn again")

    def __post_init__(self) -> None:
        if self.max_scale < self.min_scale:
            raise UserError(f"augment.max_scale {self.max_scale} must not be below min_scale {self.min_scale}.")
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if getattr(self, name) > most:
                raise UserError(f"augment.{name} must be at most {most}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Model:
    """The encoder and the head."""

    encoder: str = key("vit_base_patch14_dinov2.lvd142m", "a timm name, or hf-hub:org/model", ENCODER)
    head: str = key("linear", "linear, multilayer_linear, mask2former or eomt")
    patch_size: PositiveInt = key(16, "pixels; the pretrained patch embedding is resampled to it")
    pretrained: bool = key(True, "timm's weights; false: random ones", ENCODER)
    checkpoint: str | None = key(None, "a file of encoder weights, in place of the published ones", ENCODER)
    init_from: str | None = key(None, "a trained model to start from: a run or model folder, or user/name on the Hub")
    freeze_encoder: bool = key(False, "train the head alone")
    lora_rank: PositiveInt | None = key(None, "train adapters of this rank in the encoder's attention, and the head")
    image_mean: list[float] | None = key(None, "of pixels in [0, 1], one a channel; null: timm's", ENCODER)
    image_std: list[PositiveFloat] | None = key(None, "of pixels in [0, 1], one a channel; null: timm's", ENCODER)
    mask2former: Mask2Former = field(default_factory=Mask2Former)
    eomt: Eomt = field(default_factory=Eomt)

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if values is not None and len(values) != 3:
                raise UserError(f"model.{name} must hold three numbers, one for each colour channel, not {values}.")

        if self.lora_rank and self.freeze_encoder:
            raise UserError("model.lora_rank trains the encoder, but model.freeze_encoder is true: set one of them.")

    def head_options(self) -> dict[str, Any]:
        """The keys of the head's own section as plain numbers; none for a head without a section."""
        section = getattr(self, self.head, None)
        return _plain(dataclasses.asdict(section)) if dataclasses.is_dataclass(section) else {}


class Warmup(typing.NamedTuple):
    """Steps at a learning rate of 0, then steps in which it rises in proportion to the step."""

    wait: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule."""

    lr: PositiveFloat = key(1e-4, "the head's learning rate at the first step")
    encoder_lr_multiplier: NonNegativeFloat = key(0.1, "the encoder learns at lr times this")
    weight_decay: NonNegativeFloat = key(0.05, "on every parameter")
    betas: list[NonNegativeFloat] = key([0.9, 0.999], "decay of the two moments")
    eps: PositiveFloat = key(1e-8, "added to the root of the second moment")
    schedule: Literal["poly", "cosine", "constant"] = key("poly", "how the learning rate falls after the warm-up")
    poly_power: NonNegativeFloat = key(0.9, "of poly: lr falls as (1 - step / steps) ** poly_power")
    warmup_steps: NonNegativeInt | list[NonNegativeInt] = key(
        0, "steps in which lr rises from 0; or [head, encoder], where the encoder waits for the head to warm up first"
    )
    layer_decay: PositiveFloat = key(1.0, "each encoder block learns at this times the rate of the one above it")
    clip_norm: PositiveFloat | None = key(None, "maximum norm of all gradients together; null: no limit")

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas must hold two numbers below 1, not {self.betas}.")
        if self.layer_decay > 1:
            raise UserError(f"optim.layer_decay must be at most 1, not {self.layer_decay}.")
        if isinstance(self.warmup_steps, list) and len(self.warmup_steps) != 2:
            raise UserError(f"optim.warmup_steps must be one number or [head, encoder], not {self.warmup_steps}.")

    @property
    def warmups(self) -> tuple[Warmup, Warmup]:
        """The warm-up of the head and that of the encoder: the steps before it, and its own."""
        if isinstance(self.warmup_steps, list):
            head, encoder = map(int, self.warmup_steps)
            return Warmup(0, head), Warmup(head, encoder)
        return Warmup(0, int(self.warmup_steps)), Warmup(0, int(self.warmup_steps))


@dataclass(frozen=True)
class Loss:
    """What the linear heads' loss counts."""

    class_weights: list[NonNegativeFloat] | Literal["inverse_frequency"] | None = key(
        None, "one number a class; or from the classes' shares of the training pixels; null: all pixels count alike"
    )


@dataclass(frozen=True)
class Train:
    """The loop."""

    steps: PositiveInt = key(40_000, "steps of the optimizer")
    global_batch_size: PositiveInt = key(16, "images in one optimizer step, over all processes")
    micro_batch_size: PositiveInt | Literal["auto"] = key(
        16, "the most images that one process forwards at once; auto: as many as fit into its memory", MACHINE
    )
    ema_decay: ClosedUnitInterval = key(
        0.0, "of a moving average of the weights, which is evaluated and saved in their place; 0: none"
    )
    precision: Literal["fp32", "bf16", "fp16"] = key("bf16", "of the autocast; weights are fp32")
    compile: bool = key(True, "compile the transformer blocks", MACHINE)
    cuda_graph: bool | Literal["auto"] = key(
        "auto", "capture the model's passes as CUDA graphs; auto: on one GPU, where the head allows it", MACHINE
    )
    deterministic: bool = key(False, "a GPU then resumes bitwise, and is slower", MACHINE)
    eval_every: PositiveInt = key(1_000, "steps; the last step is always evaluated")
    eval_batch_size: PositiveInt = key(16, "windows in one forward pass of an evaluation", MACHINE)
    log_every: PositiveInt = key(50, "steps", MACHINE)
    checkpoint_every: PositiveInt = key(1_000, "steps", MACHINE)
    keep_checkpoints: PositiveInt = key(2, "checkpoints that are kept", MACHINE)
    keep_best: bool = key(False, "keep the model of the best validation in model_best/, chosen on its data", MACHINE)

    def __post_init__(self) -> None:
        if self.ema_decay == 1:
            raise UserError("train.ema_decay must be below 1: at 1 the average would never change.")


@dataclass(frozen=True)
class Output:
    """Where the results go; these keys change no result."""

    dir: str | None = key(None, "the run folder; null: runs/<setting>/<encoder>-seed<seed>")
    setting: str | None = key(None, "the experiment's name; null: the first recipe file's")
    hub_model_id: str | None = key(None, "user/name: push the model there while it trains")
    hub_private: bool = key(False, "make that repository private, where it is created")
    push_every: PositiveInt | None = key(None, "steps; null: with every checkpoint")
    trackers: list[str] = key(["tensorboard"], "accelerate's names of trackers")


@dataclass(frozen=True)
class Recipe:
    """All that a run is told."""

    seed: NonNegativeInt = key(0, "decides the head's first weights, the order of the samples and all augmentation")
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        if self.seed >= 2**31:
            raise UserError(f"seed must be below 2**31, not {self.seed}.")
        if sum(warmup := self.optim.warmups[1]) >= self.train.steps:
            raise UserError(
                f"optim.warmup_steps takes {sum(warmup):,} steps, but train.steps is {self.train.steps:,}: "
                "lower the one or raise the other."
            )
        patch = self.model.patch_size
        if any(length % patch for length in self.data.crop):
            nearest = [max(round(length / patch), 1) * patch for length in self.data.crop]
            raise UserError(
                f"data.crop_size {list(self.data.crop)} is not divided by model.patch_size {patch}; "
                f"the nearest crop that is: {nearest}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain numbers, strings, lists and mappings."""
        return _plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def _plain(values: dict) -> dict[str, Any]:
    return json.loads(json.dumps(values))


class Key(typing.NamedTuple):
    """A leaf of the recipe: its type, its default, what --help says, and MACHINE, ENCODER or nothing."""

    type: Any
    default: Any
    about: str
    metadata: Mapping[str, Any]


def _fields(cls: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every leaf of a recipe's dataclasses by its dotted key."""
    types = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[item.name]):
            yield from _fields(types[item.name], f"{prefix}{item.name}.")
        else:
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            yield prefix + item.name, Key(types[item.name], default, item.metadata.get("about", ""), item.metadata)


KEYS = dict(_fields(Recipe))


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by their dotted keys; a key of the recipe is a leaf, whatever it holds."""
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict) and dotted not in KEYS:
            yield from flatten(value, dotted + ".")
        else:
            yield dotted, value
