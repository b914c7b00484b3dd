"""python -m benchmark predict --model MODEL IMAGE [IMAGE ...] --output FOLDER

Label images with a trained model. MODEL is a model folder or a name on the Hub; an IMAGE is a file, a folder, whose
images are all taken, or a pattern such as 'photos/**/*.jpg'. FOLDER gets labels/ (palette PNGs at each image's own
size), overlays/ (with a legend) and shares.csv (each class's share of each image, in per cent).
"""

import csv
import glob
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser
from data_scripts.tables import format_table

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark predict", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder or a pattern")
    parser.add_argument("--model", required=True, help="a model folder, such as runs/x/model, or user/name on the Hub")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the label maps go")
    parser.add_argument("--batch_size", type=int, default=16, help="windows in one forward (default: 16)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="fp32 (default) gives what an evaluation in fp32 scores, bit for bit on the same device",
    )
    own = parser.parse_args(arguments)
    if own.batch_size < 1:
        raise UserError(f"--batch_size must be above 0, not {own.batch_size}.")
    files = find_images(own.images)
    output = Path(own.output)
    try:
        for name in ("labels", "overlays"):
            (output / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): name another folder.") from None
    predict(own.model, files, output, batch_size=own.batch_size, precision=own.precision)


def find_images(names: Sequence[str]) -> dict[str, Path]:
    """The images that files, folders and patterns name, each by a name for its output that no other has.

    Raises:
        UserError: one of `names` names nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not inside:
                raise UserError(f"The folder {name} holds no images ({', '.join(EXTENSIONS)}): name another one.")
        elif path.is_file():
            inside = [path]
        else:
            inside = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
            if not inside:
                raise UserError(f"There is no image {name}: name a file, a folder or a pattern that fits some.")
        found.update(dict.fromkeys(file.absolute() for file in inside))
    root = os.path.commonpath([file.parent for file in found])
    relative = {file: file.relative_to(root) for file in found}
    stems = Counter(path.with_suffix("") for path in relative.values())
    named = {
        str(path.with_suffix("") if stems[path.with_suffix("")] == 1 else path): file for file, path in relative.items()
    }
    # a.jpg, a.png and a.jpg.png: the last would take the first one's name
    return named if len(named) == len(found) else {str(path): file for file, path in relative.items()}


def predict(
    model_name: str, files: dict[str, Path], output: Path, *, batch_size: int, precision: str
) -> dict[str, str]:
    """Write the label map and the overlay of each file, then the table; return what could not be read, and why.

    Raises:
        UserError: the model cannot be had, or no image can be read.
    """
    import torch
    import transformers
    from tqdm.auto import tqdm

    from benchmark.evaluation.inference import window_logits
    from benchmark.models.windows import label_map
    from benchmark.reporting.hub import model_folder
    from benchmark.reporting.model_folder import load_model
    from benchmark.reporting.pictures import class_shares
    from data_scripts.labels import default_colors

    transformers.utils.logging.disable_progress_bar()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = load_model(model_folder(model_name)).to(device)
    config = model.config
    classes = [config.id2label[c] for c in range(config.num_labels)]
    colors = config.colors or default_colors(len(classes))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    unreadable: dict[str, str] = {}
    shares: dict[str, list[float]] = {}
    with tqdm(total=len(files), unit="image", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        for (name, size), logits in window_logits(
            model,
            _readable(files, config.crop_size, unreadable, bar),
            batch_size=batch_size,
            device=device,
            autocast=lambda: torch.autocast(device.type, dtype, enabled=dtype is not None),
        ):
            labels = label_map(logits, size).cpu().numpy()
            _write_pictures(output, name, files[name], labels, classes, colors)
            shares[name] = class_shares(labels, len(classes)).tolist()
            bar.update()
    if not shares:
        raise UserError(
            f"None of {len(files)} image(s) could be read, the first because {next(iter(unreadable.values()))}."
        )
    _write_table(output / "shares.csv", classes, shares)
    _report(output, classes, shares, {str(files[name]): why for name, why in unreadable.items()})
    return unreadable


def open_image(file: Path):
    """The image of a file, turned as its EXIF says.

    Raises:
        OSError, ValueError, SyntaxError: or whatever else PIL has for a file that is none.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # up to twice the size at which PIL warns of a bomb, an image is read
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image)


def _readable(files: dict[str, Path], crop_size: Sequence[int], unreadable: dict[str, str], bar) -> Iterator:
    """Each image that can be read, by its name and its size (height, width), resized to cover the crop."""
    from benchmark.models.windows import resize_to_cover, rgb_tensor

    for name, file in files.items():
        try:
            pixels = rgb_tensor(open_image(file))
            yield (name, tuple(pixels.shape[1:])), resize_to_cover(pixels, crop_size)
        except Exception as error:  # PIL's plugins raise whatever they like
            unreadable[name] = str(error).rstrip(".") or type(error).__name__
            bar.update()


def _write_pictures(output: Path, name: str, file: Path, labels, classes: Sequence[str], colors) -> None:
    from benchmark.reporting.pictures import label_image, overlay

    label_file, overlay_file = output / "labels" / f"{name}.png", output / "overlays" / f"{name}.jpg"
    for path in (label_file, overlay_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    label_image(labels, colors).save(label_file)
    # Read once more, so that the images of a batch need not all be kept.
    overlay(open_image(file).convert("RGB"), labels, classes, colors).save(overlay_file, quality=92)


def _write_table(file: Path, classes: Sequence[str], shares: dict[str, list[float]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", *classes])
        writer.writerows([name, *(f"{share:.3f}" for share in row)] for name, row in shares.items())


def _report(output: Path, classes: Sequence[str], shares: dict[str, list[float]], unreadable: dict[str, str]) -> None:
    means = [sum(column) / len(shares) for column in zip(*shares.values(), strict=True)]
    rows = sorted(zip(classes, means, strict=True), key=lambda row: -row[1])
    print(format_table([(name, f"{mean:.2f}") for name, mean in rows if mean], ("class", "share in %")))
    print(f"Label maps, overlays and shares of {len(shares)} image(s) are in {output}.")
    for name, why in unreadable.items():
        print(f"{name} was left out: {why}.", file=sys.stderr)
