"""A few validation images and what each encoder made of them, for the page."""

import base64
from pathlib import Path
from typing import Any

from benchmark.reporting.pictures import sample_names
from benchmark.reporting.run_folder import SAMPLES
from benchmark.study.collect import Collection, Group

MOST = 3  # images on the page
KINDS = {".jpg": "image/jpeg", ".png": "image/png"}


def collect_samples(collection: Collection) -> list[dict[str, Any]]:
    """Pictures of the first setting that has any: the same images for each encoder, by its first seed.

    Returns:
        setting, name, and as data URIs image, label and, by encoder, predictions.
    """
    for group in collection.groups:
        if samples := _of_group(group):
            return samples
    return []


def _of_group(group: Group) -> list[dict[str, Any]]:
    folders = {encoder: group.of(encoder)[0].folder / SAMPLES for encoder in group.encoders}
    found = []
    for first in folders.values():
        for image in sorted(first.glob("*-image.jpg"))[:MOST]:
            key = image.name.removesuffix("-image.jpg")
            names = sample_names(key)
            predictions = {
                encoder: _data_uri(folder / names.prediction)
                for encoder, folder in folders.items()
                if (folder / names.prediction).exists()
            }
            picture = {"image": _data_uri(image), "label": _data_uri(first / names.label), "predictions": predictions}
            found.append({"setting": group.setting, "name": key, **picture})
        if found:
            break
    return found


def _data_uri(file: Path) -> str:
    return f"data:{KINDS[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
