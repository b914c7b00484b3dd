"""A timm encoder and a segmentation head as one HuggingFace model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .configuration import SegmentationConfig
from .encoder import Encoder
from .errors import ModelError
from .heads import HEADS
from .windows import WindowLogits

if TYPE_CHECKING:  # transformers looks for such lines to learn which files belong to a model
    from .pipeline import SegmentationPipeline  # noqa: F401


class SegmentationModel(PreTrainedModel):
    """Semantic segmentation with a plain vision transformer and a head.

    Built from a configuration alone it has random weights and downloads nothing; `load_encoder_weights` in
    `encoder_checkpoint.py` loads pretrained ones.
    """

    config_class = SegmentationConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SegmentationConfig):
        super().__init__(config)
        if config.head not in HEADS:
            raise ModelError(f"model.head is '{config.head}', but it must be one of {', '.join(HEADS)}.")
        self.encoder = Encoder(config.encoder, tuple(config.crop_size), config.patch_size, config.encoder_source)
        config.encoder_source = self.encoder.source
        self.head = HEADS[config.head](
            self.encoder.embed_dim, config.num_labels, self.encoder.grid_size, **config.head_options
        )
        if config.class_weights is not None:
            if not self.head.weighs_classes:
                raise ModelError(f"The {config.head} head's loss has no class weights: set loss.class_weights to null.")
            self.head.class_weights = config.class_weights
        self.head.attach(self.encoder)
        if config.freeze_encoder:
            self.encoder.freeze()
        self.post_init()

    def get_input_embeddings(self) -> None:
        """None: there is no table of tokens, which HuggingFace and FSDP would look for."""

    def _init_weights(self, module: nn.Module) -> None:
        """Leave weights as timm and PyTorch initialised them: HuggingFace's default would overwrite pretrained ones."""

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        output_auxiliary_logits: bool = False,
    ):
        """Logits at token resolution and, with `labels`, the loss: each image's own, averaged over images.

        Args:
            pixel_values: (B, 3, H, W) floats, normalised with the configuration's mean and std; H, W is the crop.
            labels: (B, H, W) integers, 255 = ignore.
            positions: (B,) integers, the samples' places in the training stream; they key what a head's loss draws
                (default: 0 .. B - 1).
            output_auxiliary_logits: of the Mask2Former head: also return the logits of the layers before the last.

        Returns:
            What the head's `outputs` makes: `SemanticSegmenterOutput` with logits (B, C, h, w) for the linear heads,
            `Mask2FormerForUniversalSegmentationOutput` with class_queries_logits (B, Q, C + 1) and
            masks_queries_logits (B, Q, h, w) of the last layer for Mask2Former's and EoMT's; with a loss, its parts are
            in loss_parts where it has some.
        """
        predictions = self.predict(pixel_values, positions)
        loss, parts = None, {}
        if labels is not None:
            losses, parts = self.head.loss(predictions, labels, positions, self.config.seed)  # (B,), {name: (B,)}
            loss, parts = losses.mean(), {name: part.mean() for name, part in parts.items()}
        return self.head.outputs(predictions, loss, parts, output_auxiliary_logits)

    def predict(self, pixel_values: Tensor, positions: Tensor | None = None) -> Any:
        """What the head makes of (B, 3, H, W) normalised floats: what its loss and its outputs take."""
        if self.head.takes_encoder:
            return self.head(self.encoder, pixel_values, positions, self.config.seed)
        return self.head(self.encoder(pixel_values))

    def anneal(self, progress: float) -> None:
        """Tell a head that changes in the course of training which share of it, in 0..1, is over.

        The configuration notes it, so that a model that is saved then is as it is now.
        """
        self.config.head_options = {**self.config.head_options, **self.head.anneal(progress)}

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of encoder and head: what is compiled, and sharded, one by one."""
        return [*self.encoder.blocks, *getattr(self.head, "blocks", [])]

    def compile_blocks(self) -> None:
        """Compile the repeated blocks one by one: nearly as fast as the whole, and compiled once for all of them.

        So is the linear head's loss, where it is computed on a GPU.
        """
        for block in self.blocks:
            block.compile()
        self.head.compiled = True

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but a weight that is missing or of another shape is an error and not left at random."""
        kwargs["ignore_mismatched_sizes"] = True  # transformers' own error does not name them
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
        if missing:
            raise ModelError(
                f"The model's weights lack {', '.join(missing[:3])} ({len(missing)} in all): save it again."
            )
        if mismatched:
            key, found, expected = mismatched[0]
            raise ModelError(
                f"The model's weights hold {key} of shape {list(found)}, its configuration asks for {list(expected)}: "
                "take the config.json that was saved with them."
            )
        return (model, info) if output_loading_info else model


def semantic_logits(outputs, size: Sequence[int], rows: slice | None = None, head: str | None = None) -> Tensor:
    """Class logits (B, C, *size) in fp32 from the outputs of a model.

    Args:
        rows: the rows of the result to make, which has no gradient then; None: all of them.
        head: the name of the model's head; None: the first one that has such outputs.
    """
    name = head or next(name for name in HEADS if HEADS[name].main_output in outputs)
    return HEADS[name].semantic_logits(outputs, size, rows)


def window_logits(outputs, crop_size: Sequence[int], head: str | None = None) -> WindowLogits:
    """The logits of windows, from a model's outputs on them: tensors whose first axis is the window.

    Args:
        head: as in `semantic_logits`.
    """

    def rows(windows: slice, rows: slice) -> Tensor:
        return semantic_logits({name: output[windows] for name, output in outputs.items()}, crop_size, rows, head)

    height, width = crop_size
    return WindowLogits((height, width), rows)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters the model has, and how many are trained; adapters are no part of it, because they are merged
    into what it has.
    """
    sizes = [(name, p.numel(), p.requires_grad) for name, p in model.named_parameters()]
    return sum(n for name, n, _ in sizes if ".lora_" not in name), sum(n for _, n, trained in sizes if trained)


# By which pipelines know what they support.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[SegmentationConfig.model_type] = SegmentationModel.__name__
SegmentationConfig.register_for_auto_class()
SegmentationModel.register_for_auto_class("AutoModelForSemanticSegmentation")
AutoModelForSemanticSegmentation.register(SegmentationConfig, SegmentationModel, exist_ok=True)
