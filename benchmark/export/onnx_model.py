"""An ONNX file in the place of a torch model: `predict` and `evaluate` run it through the same windows."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput, SemanticSegmenterOutput
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting.hub import find_model_folder
from benchmark.reporting.model_folder import load_model


def require_onnx(*packages: str) -> None:
    """Raises UserError where one of `packages` is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX files need {', '.join(missing)}: run pip install 'vfm-segmentation-benchmark[export]'.")


class OnnxModel(nn.Module):
    """A file that `export` wrote, with the outputs of the model that it was made of.

    It normalises in its graph, so that its configuration says a mean of 0 and a standard deviation of 1: pixels come as
    floats in [0, 1], and go into the file as the bytes that they were.

    Args:
        device: CUDA is used where this onnxruntime has it, else the CPU.

    Raises:
        UserError: it is no such file.
    """

    def __init__(self, file: Path, device: torch.device | str = "cpu"):
        super().__init__()
        require_onnx("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        there = onnxruntime.get_available_providers()
        cuda = torch.device(device).type == "cuda" and "CUDAExecutionProvider" in there
        try:
            providers = [*(["CUDAExecutionProvider"] if cuda else []), "CPUExecutionProvider"]
            self.session = onnxruntime.InferenceSession(str(file), options, providers=providers)
            self.about: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
            self.config = SegmentationConfig.from_dict(json.loads(self.about["config"]))
        except Exception as error:  # onnxruntime has its own
            what = "it lacks the metadata" if isinstance(error, KeyError) else type(error).__name__
            raise UserError(
                f"{file} is not an ONNX file of this project ({what}): write one with 'python -m benchmark export'."
            ) from None
        self.config.image_mean, self.config.image_std = [0.0] * 3, [1.0] * 3
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The outputs of `Graph`, of pixels, uint8 (B, 3, height, width)."""
        return self.session.run(self.names, {"pixels": pixels})

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        pixels = (pixel_values * 255).round().to(torch.uint8).cpu().numpy()
        outputs = {
            name: torch.from_numpy(value).to(pixel_values.device)
            for name, value in zip(self.names[1:], self.run(pixels)[1:], strict=True)
        }
        kind = SemanticSegmenterOutput if "logits" in outputs else Mask2FormerForUniversalSegmentationOutput
        return kind(**outputs)


def load_any(name: str, device: torch.device | None = None) -> tuple[SegmentationModel | OnnxModel, Path]:
    """The model that a folder, a name on the Hub or an .onnx file names, in eval mode, and the folder that it lies in.

    Args:
        device: where it runs; by default a torch model is on the CPU, and a file runs on CUDA where it can.

    Raises:
        UserError: there is no such model.
    """
    file = Path(name)
    if file.suffix == ".onnx":
        if not file.is_file():
            raise UserError(f"There is no file {name}: write one with 'python -m benchmark export'.")
        return OnnxModel(file, device or "cuda").eval(), file.parent
    folder = find_model_folder(name)
    return load_model(folder).to(device or "cpu"), folder
