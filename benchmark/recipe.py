"""The recipe: every number that changes a result, typed, checked before anything is loaded.

`command_line.py` reads it from files and flags.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from benchmark.errors import UserError
from data_scripts.custom import Custom

# Keys that name a machine or a rhythm and not an experiment: a run may be resumed, and compared, across their values.
MACHINE = {"machine": True}
# Keys that name the encoder under comparison: results that differ in them alone were had under one protocol.
ENCODER = {"encoder": True}


@dataclass(frozen=True)
class Data:
    """Which images are trained and validated on, and how they are cut."""

    train: str = "shapes"
    val: list[str] = field(default_factory=lambda: ["shapes"])
    root: str = field(default="data", metadata=MACHINE)  # where the archives lie, as they were downloaded
    cache_dir: str | None = field(default=None, metadata=MACHINE)  # of the Arrow files; null: HuggingFace's own
    crop_size: PositiveInt | list[PositiveInt] = 512  # pixels; or [height, width]
    num_workers: NonNegativeInt = field(
        default=4, metadata=MACHINE
    )  # processes that load images, for each training process
    allow_partial: bool = False  # accept archives with fewer images than the official split
    custom: Custom = field(default_factory=Custom)  # what the datasets `folder` and `hub` are made of

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
class Model:
    """The encoder and the head."""

    encoder: str = field(default="vit_base_patch14_dinov2.lvd142m", metadata=ENCODER)  # a timm name
    head: Literal["linear", "mask2former"] = "linear"
    patch_size: PositiveInt = 16  # the pretrained patch embedding is resampled to it
    pretrained: bool = field(default=True, metadata=ENCODER)  # timm's weights; false: random ones
    checkpoint: str | None = field(default=None, metadata=ENCODER)  # a file of encoder weights, in place of timm's
    freeze_encoder: bool = False  # train the head alone
    image_mean: list[float] | None = field(default=None, metadata=ENCODER)  # of pixels in [0, 1]; null: timm's
    image_std: list[PositiveFloat] | None = field(default=None, metadata=ENCODER)
    num_points: PositiveInt = 12544  # at which the Mask2Former loss samples a mask

    def __post_init__(self) -> None:
        for key in ("image_mean", "image_std"):
            values = getattr(self, key)
            if values is not None and len(values) != 3:
                raise UserError(f"model.{key} must hold three numbers, one a colour channel, not {values}.")


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule."""

    lr: PositiveFloat = 1e-4
    encoder_lr_multiplier: NonNegativeFloat = 0.1  # the encoder learns at lr times this
    weight_decay: NonNegativeFloat = 0.05  # on every parameter
    poly_power: NonNegativeFloat = 0.9  # lr falls as (1 - step / steps) ** poly_power


@dataclass(frozen=True)
class Train:
    """The loop."""

    steps: PositiveInt = 40_000  # of the optimizer
    global_batch_size: PositiveInt = 16  # images in one optimizer step, over all processes
    # The most that one process forwards at once; auto: the most that fits into its memory.
    micro_batch_size: PositiveInt | Literal["auto"] = field(default=16, metadata=MACHINE)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    compile: bool = field(default=True, metadata=MACHINE)
    deterministic: bool = field(default=False, metadata=MACHINE)  # a GPU then resumes bitwise, and is slower
    eval_every: PositiveInt = 1_000  # steps; the last step is always evaluated
    eval_batch_size: PositiveInt = field(default=16, metadata=MACHINE)  # windows in one forward
    log_every: PositiveInt = field(default=50, metadata=MACHINE)  # steps
    checkpoint_every: PositiveInt = field(default=1_000, metadata=MACHINE)  # steps
    keep_checkpoints: PositiveInt = field(default=2, metadata=MACHINE)


@dataclass(frozen=True)
class Output:
    """What is left where."""

    dir: str | None = None  # the run folder; null: runs/<setting>/<encoder>-seed<seed>
    setting: str | None = None  # the experiment's name; null: the first recipe file's
    hub_model_id: str | None = None  # user/name: push the model there while it trains, as whoever is logged in
    hub_private: bool = False  # of a repository that is made
    push_every: PositiveInt | None = None  # steps; null: with every checkpoint
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # accelerate's names


@dataclass(frozen=True)
class Recipe:
    """All that a run is told."""

    seed: NonNegativeInt = 0
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        if self.seed >= 2**31:
            raise UserError(f"seed must be below 2**31, not {self.seed}.")
        patch = self.model.patch_size
        if any(length % patch for length in self.data.crop):
            nearest = [max(round(length / patch), 1) * patch for length in self.data.crop]
            raise UserError(
                f"data.crop_size {list(self.data.crop)} is not divided by model.patch_size {patch}; "
                f"the nearest crop that is: {nearest}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain numbers, strings, lists and mappings."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def identity(self) -> dict[str, Any]:
        """What makes this experiment what it is, by dotted key: all but machine keys and output."""
        return {key: value for key, value in self._leaves() if not KEYS[key].metadata.get("machine")}

    def protocol(self) -> str:
        """A hash of what makes two results comparable: the identity less the encoder under comparison and the seed."""
        shared = {k: v for k, v in self.identity().items() if k != "seed" and not KEYS[k].metadata.get("encoder")}
        shared["data.crop_size"] = list(self.data.crop)  # 512 is [512, 512]
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]

    def _leaves(self) -> Iterator[tuple[str, Any]]:
        return ((k, v) for k, v in flatten(self.to_dict()) if not k.startswith("output."))


def _fields(cls: type, prefix: str = "") -> Iterator[tuple[str, "Key"]]:
    """Every leaf of a recipe's dataclasses by its dotted key."""
    kinds = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kinds[item.name]):
            yield from _fields(kinds[item.name], f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, Key(kinds[item.name], item.metadata)


class Key(typing.NamedTuple):
    """A leaf of the recipe: its type, and MACHINE, ENCODER or nothing."""

    type: Any
    metadata: Mapping[str, bool]


KEYS = dict(_fields(Recipe))


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by their dotted keys, a key of the recipe being a leaf whatever it holds."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and dotted not in KEYS:
            yield from flatten(value, dotted + ".")
        else:
            yield dotted, value
