"""A timm encoder and a segmentation head as one HuggingFace model."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from .configuration import SegmentationConfig
from .encoder import Encoder
from .errors import ModelError
from .linear_head import LinearHead, cross_entropy_per_image
from .mask2former_head import Mask2FormerHead
from .mask2former_head import semantic_logits as query_semantic_logits
from .mask2former_loss import mask2former_loss


class SegmentationModel(PreTrainedModel):
    """Semantic segmentation with a plain vision transformer and a linear or a Mask2Former head.

    Built from a configuration alone it has random weights and downloads nothing; `load_encoder_weights` in
    `encoder.py` puts pretrained ones in.
    """

    config_class = SegmentationConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SegmentationConfig):
        super().__init__(config)
        self.encoder = Encoder(config.encoder, tuple(config.crop_size), config.patch_size)
        head = LinearHead if config.head == "linear" else Mask2FormerHead
        self.head = head(self.encoder.embed_dim, config.num_labels, self.encoder.grid_size)
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
            positions: (B,) integers, the samples' places in the training stream; they key the Mask2Former loss's
                points.
            output_auxiliary_logits: of the Mask2Former head: hand out the logits of the layers before the last, too.

        Returns:
            `SemanticSegmenterOutput` with logits (B, C, h, w) for the linear head,
            `Mask2FormerForUniversalSegmentationOutput` with class_queries_logits (B, Q, C + 1) and
            masks_queries_logits (B, Q, h, w) of the last layer for the Mask2Former head.
        """
        inference = not (self.training or labels is not None or output_auxiliary_logits)
        if inference and len(pixel_values) > 1 and _is_fp32(pixel_values):
            # Matrix products round by the shape of the batch. One by one, a window's logits are the same bit for bit in
            # evaluation, in `predict` and in a pipeline; in fp32 a window alone keeps a device busy.
            outputs = [self.forward(window) for window in pixel_values.split(1)]
            return type(outputs[0])(**{key: torch.cat([o[key] for o in outputs]) for key in outputs[0]})
        tokens = self.encoder(pixel_values)  # (B, N, D)
        if self.config.head == "linear":
            logits = self.head(tokens)
            loss = None if labels is None else cross_entropy_per_image(logits, labels).mean()
            return SemanticSegmenterOutput(loss=loss, logits=logits)
        return self._mask2former_output(self.head(tokens), labels, positions, output_auxiliary_logits)

    def _mask2former_output(self, predictions, labels, positions, output_auxiliary_logits):
        loss = None
        if labels is not None:
            loss = mask2former_loss(
                predictions, labels, positions, seed=self.config.seed, num_points=self.config.num_points
            ).mean()
        auxiliary = None
        if output_auxiliary_logits:
            auxiliary = [
                {"class_queries_logits": class_logits, "masks_queries_logits": predictions.mask_logits(layer)}
                for layer, class_logits in enumerate(predictions.class_logits[:-1])
            ]
        return Mask2FormerForUniversalSegmentationOutput(
            loss=loss,
            class_queries_logits=predictions.class_logits[-1],
            masks_queries_logits=predictions.mask_logits(),
            auxiliary_logits=auxiliary,
        )

    def compile_blocks(self) -> None:
        """Compile the repeated blocks one by one: nearly as fast as the whole, and compiled once for all of them."""
        for block in [*self.encoder.blocks, *getattr(self.head, "blocks", [])]:
            block.compile()

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


def semantic_logits(outputs, size: Sequence[int]) -> Tensor:
    """Class logits (B, C, *size) in fp32 from the outputs of a model with either head, window by window."""
    size = tuple(size)
    if "logits" in outputs:
        return F.interpolate(outputs["logits"].float().contiguous(), size, mode="bilinear")
    windows = zip(outputs["class_queries_logits"].split(1), outputs["masks_queries_logits"].split(1), strict=True)
    return torch.cat([query_semantic_logits(classes, masks, size) for classes, masks in windows])


def _is_fp32(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and not torch.is_autocast_enabled(tensor.device.type)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters the model has, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


SegmentationConfig.register_for_auto_class()
SegmentationModel.register_for_auto_class("AutoModelForSemanticSegmentation")
AutoModelForSemanticSegmentation.register(SegmentationConfig, SegmentationModel, exist_ok=True)
