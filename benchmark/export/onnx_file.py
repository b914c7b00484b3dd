"""A model written as an ONNX file, and checked against torch.

In the graph: normalisation, encoder, head, upsampling to the crop, argmax. Outside, as everywhere: the resize to the
crop, the windows, and their merging; see `benchmark.models.windows`.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.errors import UserError
from benchmark.export.onnx_model import OnnxModel, require_onnx
from benchmark.models.mask_head import semantic_logits
from benchmark.models.modeling import SegmentationModel
from benchmark.models.windows import normalize

OPSET = 20
AGREEMENT = 0.9999  # the share of pixels with torch's label, below which a file in fp32 is refused


class Agreement(NamedTuple):
    """How near a file is to torch: the share of pixels of one label, and the scores' largest error, as a share of their
    range."""

    labels: float
    scores: float


class Graph(nn.Module):
    """What the file computes: pixels, uint8 (B, 3, height, width) of a crop, to labels, uint8 (B, height, width), and
    the head's outputs at the resolution of the tokens, in the order of `output_names`."""

    def __init__(self, model: SegmentationModel):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        config = self.model.config
        crop = tuple(config.crop_size)
        outputs = self.model(normalize(pixels, config.image_mean, config.image_std))
        # Mask2Former's own way to scores goes window by window, which would fix the number of windows.
        if "logits" in outputs:
            scores = self.model.head.semantic_logits(outputs, crop)
        else:
            scores = semantic_logits(outputs["class_queries_logits"], outputs["masks_queries_logits"], crop)
        return scores.argmax(dim=1).to(torch.uint8), *(outputs[name] for name in output_names(outputs))


def output_names(outputs: Mapping[str, Any]) -> list[str]:
    """The head's outputs that a file has: `logits`, or the classes and masks of its queries."""
    return [name for name in ("logits", "class_queries_logits", "masks_queries_logits") if name in outputs]


def write_onnx(
    model: SegmentationModel,
    file: Path,
    *,
    precision: str,
    about: Mapping[str, str],
    images: Sequence[Tensor] = (),
) -> Agreement:
    """Write a model to `file`, and return how near it is to torch.

    Args:
        model: in eval mode, on the CPU.
        precision: fp32; fp16, with fp32 outputs; int8, of the weights of its matrix products.
        about: more metadata.
        images: uint8 windows (3, height, width) to compare on, beside drawn ones.

    Raises:
        UserError: a package is missing, the encoder cannot be exported, or a file in fp32 differs from torch.
    """
    require_onnx("onnx", "onnxscript", "onnxruntime")
    for module in model.modules():
        if hasattr(module, "rel_pos_h"):  # the fused kernel of SAM's relative positions has no counterpart
            module.fused_attn = False
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        written = Path(folder) / file.name
        _write(model, written)
        _convert(written, precision)
        _describe(written, model, precision, about)
        agreement = compare(model, OnnxModel(written), images)
        if precision == "fp32" and agreement.labels < AGREEMENT:
            raise UserError(
                f"The file of {model.config.encoder} gives {100 * agreement.labels:.3f} % of torch's labels, and was "
                "not kept: use the model with torch, or export it with another version of onnxruntime."
            )
        for part in sorted(Path(folder).iterdir()):  # of a file above 2 GB its weights, too
            part.replace(file.parent / part.name)
    return agreement


@contextmanager
def _errors_only(*loggers: str) -> Iterator[None]:
    """Silence the advice of loggers ("" is the root) inside the block alone."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _write(model: SegmentationModel, file: Path) -> None:
    graph = Graph(model).eval()
    pixels = torch.zeros(2, 3, *model.config.crop_size, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings(), _errors_only("onnxscript", "onnx_ir", "torch.onnx"):
        warnings.simplefilter("ignore")
        names = output_names(model(normalize(pixels[:1], (0, 0, 0), (1, 1, 1))))
        try:
            program = torch.onnx.export(
                graph,
                (pixels,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["labels", *names],
                dynamic_shapes={"pixels": {0: torch.export.Dim("windows")}},
                verbose=False,
            )
        except Exception as error:  # of whatever part of torch and onnxscript
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise UserError(
                f"{model.config.encoder} with the {model.config.head} head cannot be exported ({reason}): use it with "
                "torch, or export it with another version of torch."
            ) from error
    if isinstance(program.model.graph.inputs[0].shape[0], int):
        raise UserError(
            f"{model.config.encoder} with the {model.config.head} head could only be exported for a fixed batch: use "
            "it with torch."
        )
    program.save(str(file))


def _convert(file: Path, precision: str) -> None:
    import onnx

    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # Unsigned weights: sums of signed ones overflow on x86 without VNNI, and scores were 13 % off in place of 0.4.
        with _errors_only(""):
            quantize_dynamic(
                file, file, weight_type=QuantType.QUInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
            )
    elif precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with _errors_only(""):
            onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True), file)


def _describe(file: Path, model: SegmentationModel, precision: str, about: Mapping[str, str]) -> None:
    import onnx

    config = model.config
    facts = {
        "classes": json.dumps([config.id2label[c] for c in range(config.num_labels)]),
        "colors": json.dumps(config.colors),
        "crop_size": json.dumps(config.crop_size),
        "patch_size": str(config.patch_size),
        "precision": precision,
        "config": config.to_json_string(use_diff=False),
        **about,
    }
    described = onnx.load(file, load_external_data=False)
    onnx.helper.set_model_props(described, facts)
    onnx.save(described, file)


@torch.no_grad()
def compare(model: SegmentationModel, exported: OnnxModel, images: Sequence[Tensor] = ()) -> Agreement:
    """How near a file is to torch, on windows of images and on four drawn ones, in batches of one and of several."""
    height, width = model.config.crop_size
    coarse = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    drawn = (F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    pixels = torch.cat([drawn, *(image[None] for image in images)])
    wanted = [part.numpy() for part in Graph(model)(pixels)]
    batches = [exported.run(batch.numpy()) for batch in pixels.split([1, len(pixels) - 1])]
    labels, scores = (np.concatenate([batch[place] for batch in batches]) for place in (0, 1))
    error = np.abs(scores - wanted[1]).max() / np.ptp(wanted[1])
    return Agreement(float((labels == wanted[0]).mean()), float(error))
