"""python -m benchmark export MODEL --format onnx [--precision fp16|int8] [--output FILE]

Write a trained model for use elsewhere. `onnx`: one file, checked against torch, that `predict` and `evaluate` run,
too. `space`: a folder with a gradio app that shows the model, here (python app.py) or as a Space on the Hub.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark export", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a run's folder, a model's, or user/name on the Hub")
    parser.add_argument("--format", required=True, choices=("onnx", "space"))
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="of an ONNX file (default: fp32)")
    parser.add_argument("--output", type=Path, help="the file, or the Space's folder; by default in the run's folder")
    args = parser.parse_args(arguments)
    if args.format == "space":
        if args.precision:
            raise UserError("--precision is of an ONNX file: leave it out for a Space.")
        print(export_space(args.model, args.output))
    else:
        print(export_onnx(args.model, precision=args.precision or "fp32", output=args.output))


def export_space(name: str, output: Path | None) -> str:
    """Write the Space, and say where it is.

    Raises:
        UserError: the model cannot be had, or the folder cannot be written.
    """
    from benchmark.export.space import write_space
    from benchmark.reporting.hub import find_model_folder
    from benchmark.reporting.run_folder import writing

    folder = find_model_folder(name)
    place = output or default_place(name, folder) / "space"
    with writing(place):
        write_space(place, folder, name)
    return f"{place}: pip install -r requirements.txt && python app.py"


def export_onnx(name: str, *, precision: str, output: Path | None) -> str:
    """Write the ONNX file, and say what it is.

    Raises:
        UserError: the model cannot be had or exported, or the file cannot be written.
    """
    from benchmark.export.onnx_file import write_onnx
    from benchmark.models.windows import resize_to_cover, rgb_tensor, split_windows
    from benchmark.prediction.inputs import open_image
    from benchmark.reporting.hub import find_model_folder
    from benchmark.reporting.model_folder import load_model
    from benchmark.reporting.run_folder import SAMPLES, results_of_model, writing

    folder = find_model_folder(name)
    file = output or default_place(name, folder) / f"model_{precision}.onnx"
    if file.suffix != ".onnx":
        raise UserError(f"--output must end with .onnx, which {file} does not.")
    model, measured = load_model(folder), results_of_model(folder)
    about = {key: str(measured[key]) for key in ("protocol", "dataset", "mean_iou") if measured.get(key) is not None}
    crop, samples = model.config.crop_size, sorted((folder.parent / SAMPLES).glob("*-image.jpg"))
    images = [
        window
        for sample in samples
        for window in split_windows(resize_to_cover(rgb_tensor(open_image(sample)), crop), crop)
    ]
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        agreement = write_onnx(model, file, precision=precision, about=about, images=images)
    size = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")) / 1e6
    return (
        f"{file}: {precision}, {size:.1f} MB. On {4 + len(images)} windows it gives torch's label on "
        f"{100 * agreement.labels:.4f} % of the pixels, and its scores are at most {100 * agreement.scores:.2g} % of "
        f"their range off.\nmeasure its mIoU: python -m benchmark evaluate --model {file}"
    )


def default_place(name: str, folder: Path) -> Path:
    """Where an export goes: to the run of a last model, here for one from the Hub, else into the model's folder."""
    from benchmark.reporting.run_folder import MODEL, RECIPE

    if not Path(name).is_dir():
        return Path()
    return folder.parent if folder.name == MODEL and (folder.parent / RECIPE).exists() else folder
