"""python -m benchmark predict --model MODEL INPUT [INPUT ...] --output FOLDER

Label images with a trained model. MODEL is a run's folder, a model's, user/name on the Hub, or an .onnx file that
`export` wrote. An INPUT is an image, a video, a folder, whose images are all taken, or a pattern such as
'photos/**/*.jpg'. FOLDER gets labels/ (palette PNGs at each image's own size), overlays/ (with a legend; of a video,
the video) and shares.csv (each class's share of each image or frame, in per cent). The exit status is 1 where a file
could not be read.
"""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser, whole_number_above_0
from data_scripts.tables import format_table


class Key(NamedTuple):
    """Of what a label map is: the name of a file, its size (height, width) and, of a video, the frame."""

    name: str
    size: tuple[int, int]
    number: int = 0
    frame: Any = None


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark predict", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="an image, a video, a folder or a pattern")
    parser.add_argument("--model", required=True, help="runs/x, a model's folder, user/name on the Hub, or x.onnx")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the label maps go")
    parser.add_argument(
        "--batch_size", type=whole_number_above_0, default=16, help="windows in one forward (default: 16)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the accelerator, if there is one)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="fp32 (default) gives what an evaluation in fp32 scores, bit for bit on the same device",
    )
    args = parser.parse_args(arguments)

    from benchmark.prediction.inputs import find_inputs, is_video
    from benchmark.prediction.video import check_video

    files = find_inputs(args.inputs, Path(args.output))
    if any(map(is_video, files.values())):
        check_video()
    if "torch" not in sys.modules:
        _import_parts()
    settings = {"batch_size": args.batch_size, "precision": args.precision, "device": args.device}
    if predict(args.model, files, Path(args.output), **settings):
        sys.exit(1)


def predict(
    model_name: str,
    files: dict[str, Path],
    output: Path,
    *,
    batch_size: int = 16,
    precision: str = "fp32",
    device: str | None = None,
) -> dict[str, str]:
    """Write the label map and the overlay of each file, then the table; return what could not be read, and why.

    Args:
        files: by the names of their outputs, see `find_inputs`.
        device: as torch names it; None is the accelerator, if there is one.

    Raises:
        UserError: the model cannot be had, or no file can be read.
    """
    import torch
    import transformers
    from tqdm.auto import tqdm

    from benchmark.evaluation.inference import predict_logits
    from benchmark.models.windows import label_map
    from benchmark.prediction.outputs import Outputs
    from data_scripts.labels import default_colors

    transformers.utils.logging.disable_progress_bar()
    where = _device(device)
    model = _load(model_name, where, precision)
    config = model.config
    classes = [config.id2label[c] for c in range(config.num_labels)]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    unreadable: dict[str, str] = {}
    with (
        closing(Outputs(output, classes, config.colors or default_colors(len(classes)))) as outputs,
        tqdm(total=len(files), unit="image", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar,
    ):
        for key, logits in predict_logits(
            model,
            _readable(files, config.crop_size, unreadable, bar),
            batch_size=batch_size,
            device=where,
            autocast=lambda: torch.autocast(where.type, dtype, enabled=dtype is not None),
        ):
            labels = label_map(logits, key.size).cpu().numpy()
            if key.frame is None:
                outputs.add_image(key.name, files[key.name], labels)
            else:
                outputs.add_frame(key.name, key.number, key.frame, labels)
            bar.update()
    left_out = {str(files[name]): why for name, why in unreadable.items()}
    for name, why in left_out.items():
        print(f"{name} was left out: {why}.", file=sys.stderr)
    if not outputs.count:
        raise UserError(f"None of {len(files)} file(s) could be read: see above, and name others.")
    print(_table_of_shares(classes, outputs.totals / outputs.count))
    print(f"Label maps, overlays and shares of {outputs.count} image(s) are in {output}.")
    return left_out


def _load(model_name: str, device: Any, precision: str) -> Any:
    """The model on its torch.device, which is set up for it where it is a CPU."""
    from benchmark.export.onnx_model import OnnxModel, load_any
    from benchmark.training.cpu import set_up_cpu

    model, _ = load_any(model_name, device)
    if isinstance(model, OnnxModel) and precision != "fp32":
        raise UserError("An ONNX file has the precision of its export: leave out --precision.")
    if device.type == "cpu":
        set_up_cpu(precision, model.config.crop_size, model.config.patch_size)
    return model


def _table_of_shares(classes: Sequence[str], shares: Sequence[float]) -> str:
    """The classes that occur and their shares of all images in %, the largest first."""
    rows = sorted(zip(classes, shares, strict=True), key=lambda row: -row[1])
    return format_table([(name, f"{share:.2f}") for name, share in rows if share], ("class", "share in %"))


def _import_parts() -> None:
    """Import what takes seconds. It all stays: to look for garbage in it, time and again, would take another second."""
    gc.disable()
    import benchmark.evaluation.inference
    import benchmark.export.onnx_model  # noqa: F401

    gc.freeze()
    gc.enable()


def _device(name: str | None):
    """The device of that name, or the accelerator, if there is one, or the CPU."""
    import torch

    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except Exception as error:  # each backend has its own
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"--device {name} cannot be used ({reason}): name another one, such as cpu.") from None


def _readable(files: dict[str, Path], crop_size: Sequence[int], unreadable: dict[str, str], bar) -> Iterator:
    """Each image and frame that can be read, by its key, resized to cover the crop."""
    from benchmark.models.windows import resize_to_cover, rgb_tensor
    from benchmark.prediction.inputs import is_video, open_image
    from benchmark.prediction.video import num_frames, read_frames

    for name, file in files.items():
        number = 0
        try:
            if is_video(file):
                bar.total += max(0, num_frames(file) - 1)
                for number, frame in enumerate(read_frames(file)):
                    pixels = rgb_tensor(frame.pixels)
                    yield Key(name, tuple(pixels.shape[1:]), number, frame), resize_to_cover(pixels, crop_size)
            else:
                pixels = rgb_tensor(open_image(file))
                yield Key(name, tuple(pixels.shape[1:])), resize_to_cover(pixels, crop_size)
        except Exception as error:  # PIL's plugins raise whatever they like
            why = str(error).rstrip(".") or type(error).__name__
            unreadable[name] = f"{why}, after {number + 1} frames" if number else why
            bar.update()
