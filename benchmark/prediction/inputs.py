"""The images and videos that files, folders and patterns name."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from benchmark.errors import UserError
from data_scripts.archive import is_system_file
from data_scripts.folder import IMAGE_ENDINGS

FOLDERS, SHARES = ("labels", "overlays"), "shares.csv"  # of the predictions
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")


def find_inputs(names: Sequence[str], output: Path) -> dict[str, Path]:
    """The files that files, folders (their images, however deep) and patterns name.

    Args:
        output: the folder of the predictions; what a former run left in it is no input, unless it is named as a file.

    Returns:
        Each file by a name for its output that no other has: its path without its ending, below the folder that was
        named, or below what all of them share where there are several.

    Raises:
        UserError: one of `names` names nothing.
    """
    found: dict[Path, None] = {}
    bases = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS and file.is_file())
            inside = [file for file in inside if not is_system_file(file.relative_to(path).as_posix())]
            inside = [file for file in inside if not _is_prediction(file, output)]
            if not inside:
                raise UserError(f"The folder {name} holds no images ({', '.join(IMAGE_ENDINGS)}): name another one.")
            bases.append(path.absolute())
        elif path.is_file():
            inside = [path]
        else:
            matches = map(Path, sorted(glob.glob(name, recursive=True)))
            inside = [file for file in matches if file.is_file() and not _is_prediction(file, output)]
            if not inside:
                raise UserError(f"There is no image {name}: name a file, a folder or a pattern that fits some.")
        if not path.is_dir():
            bases += [file.absolute().parent for file in inside]
        found.update(dict.fromkeys(file.absolute() for file in inside))
    root = os.path.commonpath(bases)
    relative = {file: file.relative_to(root) for file in found}
    stems = Counter(path.with_suffix("") for path in relative.values())
    named = {
        str(path.with_suffix("") if stems[path.with_suffix("")] == 1 else path): file for file, path in relative.items()
    }
    # a.jpg, a.png and a.jpg.png: the last would take the first one's name
    return named if len(named) == len(found) else {str(path): file for file, path in relative.items()}


def _is_prediction(file: Path, output: Path) -> bool:
    """Whether an earlier run wrote a file; where there is no table of its shares, what lies there is not ours."""
    return (output / SHARES).is_file() and any(
        file.resolve().is_relative_to((output / name).resolve()) for name in FOLDERS
    )


def is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS


def open_image(file: Path) -> Image.Image:
    """The image of a file, turned as its EXIF says.

    Raises:
        ModelError: it has more than 8 bits a channel.
        UserError: it holds several pictures.
        OSError, ValueError, SyntaxError: or whatever else PIL has for a file that is none.
    """
    from benchmark.models.windows import check_depth  # which needs torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # up to twice the size at which PIL warns of a bomb, an image is read
        with Image.open(file) as image:
            check_depth(image)  # before it is read
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's photo, with another beside it
                raise UserError(f"It holds {image.n_frames} pictures: save the one that is meant, as PNG.")
            return ImageOps.exif_transpose(image)
