"""What a build counts in its samples: what was left out, pixels by class, and the digest of the content."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_scripts.errors import DatasetError
from data_scripts.images import (
    ImageInfo,
    check_image,
    content_sum,
    decode_labels,
    image_sum,
    resize_nearest,
    turned_size,
)
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.listing import Listing
from data_scripts.problems import Problems

CONTENT = "content-"  # how the digest of a dataset's content begins; older ones are of its archives' indexes


class Pair(NamedTuple):
    """The stored bytes of an image and of its label map; `str()` of a name says where it is.

    A label map may also be given as an (H, W) array of integers; None for either is a row without one.
    """

    image_name: Any
    image: bytes | None
    annotation_name: Any
    annotation: bytes | np.ndarray | None


class Counts:
    """What was found in the samples of one split, or in one worker's part of them."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.images = self.one_value = self.unlabelled = self.resized = self.turned = self.damaged = 0
        self.first: dict[str, str] = {}  # the first image that is left out, turned or damaged, by the reason
        self.pixels: np.ndarray = np.zeros(256, dtype=np.int64)  # by train id, IGNORE among them
        self.values: set[int] = set()  # raw ones, as long as they are few
        self.content = 0  # the sum of the samples' content sums
        self.places: dict[int, str] = {}  # by the sum of an image's bytes, where it is: the first of equal ones
        self.extremes: dict[str, list[Any]] = {}  # height, width and name of the tallest and the widest image
        self.problems = Problems()

    def add(self, pair: Pair, rule: LabelRule, resizes_labels: bool, drops_one_value: bool) -> np.ndarray | None:
        """Count a pair; return its (H, W) uint8 train ids, None if it is left out or broken, which is noted."""
        try:
            return self._add(pair, rule, resizes_labels, drops_one_value)
        except DatasetError as error:
            self.problems.add("files that cannot be used", str(error))
            return None

    def _add(self, pair: Pair, rule: LabelRule, resizes_labels: bool, drops_one_value: bool) -> np.ndarray | None:
        if pair.image is None or pair.annotation is None:
            what = pair.image_name if pair.image is None else pair.annotation_name
            raise DatasetError(f"{what} is empty: fill or remove the row.")
        info = check_image(pair.image, pair.image_name)
        if isinstance(pair.annotation, np.ndarray):
            raw = pair.annotation
        else:
            raw = decode_labels(pair.annotation, pair.annotation_name, rule.colors)
        labels, values, unknown = rule(raw)
        for value, pixels in unknown.items():
            self.problems.add_value(value, pixels, str(pair.annotation_name))
        if unknown:
            return None
        if labels.shape != (info.height, info.width):
            if not resizes_labels:
                raise DatasetError(wrong_size(pair, labels, info))
            labels = resize_nearest(labels, info.height, info.width)
            self.resized += 1
        if len(self.values) < 1000:
            self.values.update(values.tolist())
        pixels = np.bincount(labels.reshape(-1), minlength=256)
        name = member_name(pair.image_name)
        if len(values) == 1 and drops_one_value:
            self.one_value += 1
            return None
        if pixels[:IGNORE].sum() == 0:
            self.unlabelled += 1
            self._note_first("unlabelled", name)
            return None
        self.images += 1
        if info.turned:
            self.turned += 1
            self._note_first("turned", name)
        if info.damaged:
            self.damaged += 1
            self._note_first("damaged", name)
        self.pixels += pixels
        self.content += content_sum(name, pair.image, labels)
        self._note_place(image_sum(pair.image), str(pair.image_name))
        self._note_extremes(info, name)
        return labels

    def _note_place(self, content: int, place: str) -> None:
        self.places[content] = min(self.places.get(content, place), place)

    def _note_first(self, reason: str, name: str) -> None:
        """By name, because the order of workers differs from time to time."""
        self.first[reason] = min(self.first.get(reason, name), name)

    def _note_extremes(self, info: ImageInfo, name: str) -> None:
        for extreme, sign in (("tallest", 1), ("widest", -1)):
            height, width, known = self.extremes.get(extreme, (0, 0, name))
            taller = sign * (info.height * width - info.width * height)
            if not height or taller > 0 or (taller == 0 and (name, info.height) < (known, height)):
                self.extremes[extreme] = [info.height, info.width, name]

    def save(self, folder: Path, split: str) -> None:
        """Write the counts beside the rows, for `merged`: a worker has no other way to return them."""
        counts = {**vars(self), "pixels": self.pixels.tolist(), "values": sorted(self.values)}
        counts["problems"] = self.problems.to_json()
        (folder / f"counts-{split}-{uuid.uuid4().hex}.json").write_text(json.dumps(counts), encoding="utf-8")

    @classmethod
    def merged(cls, folder: Path, split: str, num_classes: int) -> Counts:
        """The sum of all counts that were saved for `split`, whose files are removed."""
        total = cls(num_classes)
        for file in sorted(folder.glob(f"counts-{split}-*.json")):
            part = json.loads(file.read_text(encoding="utf-8"))
            for name in ("images", "one_value", "unlabelled", "resized", "turned", "damaged", "content"):
                setattr(total, name, getattr(total, name) + part[name])
            total.pixels += np.asarray(part["pixels"])
            total.values.update(part["values"])
            total.problems.merge(Problems(part["problems"]))
            for content, place in part["places"].items():
                total._note_place(int(content), place)
            for reason, name in part["first"].items():
                total._note_first(reason, name)
            for height, width, name in part["extremes"].values():
                total._note_extremes(ImageInfo(height, width, False), name)
            file.unlink()
        return total

    def report(self, listed: int, classes: Sequence[str]) -> dict[str, Any]:
        """JSON-able: images, what was left out, and each class's pixels and share of the labelled ones (0..1)."""
        pixels = self.pixels[: self.num_classes]
        labelled = max(int(pixels.sum()), 1)
        return {
            "listed": listed,
            "images": self.images,
            "dropped": {"one_value": self.one_value, "unlabelled": self.unlabelled},
            "resized": self.resized,
            "turned": self.turned,
            "damaged": self.damaged,
            "first": self.first,
            "extremes": self.extremes,
            "pixels": {name: int(count) for name, count in zip(classes, pixels, strict=True)},
            "pixel_share": {name: int(count) / labelled for name, count in zip(classes, pixels, strict=True)},
            "ignored_share": int(self.pixels[IGNORE]) / max(int(self.pixels.sum()), 1),
        }


def wrong_size(pair: Pair, labels: np.ndarray, info: ImageInfo) -> str:
    """The sentence about a label map of another size than its image."""
    sizes = f"{labels.shape[1]}x{labels.shape[0]} pixels but its image {info.width}x{info.height}"
    if info.turned and pair.image is not None and labels.shape == turned_size(pair.image):
        return (
            f"{pair.annotation_name} is {sizes}, because {pair.image_name} is turned by its EXIF and the labels are "
            "not: store the image as it is shown, without EXIF, such as by 'mogrify -auto-orient -strip'."
        )
    return (
        f"{pair.annotation_name} is {sizes}: make them equal, by resizing the labels with nearest-neighbour "
        "interpolation."
    )


def content_digest(listing: Listing, counts: Mapping[str, Counts]) -> str:
    """Hex digest of a dataset's content: classes, and of each split the samples' names, pixels and labels.

    The same on every machine and for any number of workers.
    """
    splits = {split: [part.images, part.content % 2**128] for split, part in counts.items()}
    text = json.dumps([list(listing.classes), splits], sort_keys=True)
    return CONTENT + hashlib.sha256(text.encode()).hexdigest()[:32]


def member_name(name: Any) -> str:
    """The path column of a row: the member's name inside its archive, in UTF-8."""
    name = getattr(name, "name", str(name))
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
