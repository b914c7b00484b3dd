"""A dataset of one's own: folders of images and label maps, plain or inside a zip or tar."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_scripts.archives import Archive, Member, MissingArchive, members_under, open_archive
from data_scripts.builder import SegmentationBuilder
from data_scripts.custom import parse_custom
from data_scripts.errors import DatasetError
from data_scripts.listing import Listing, Sample, Source, archive_record, keyed, pair

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
LABEL_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".PNG", ".BMP", ".TIF", ".TIFF", ".GIF")


class Builder(SegmentationBuilder):
    """The splits that data.custom names."""

    @classmethod
    def list_dataset(cls, source: Source) -> Listing:
        custom = parse_custom(source.custom)
        places = {
            "train": (custom.train_images, custom.train_labels),
            "validation": (custom.val_images, custom.val_labels),
        }
        samples: dict[str, list[Sample]] = {}
        left_out: dict[str, Any] = {}
        records = []
        with ExitStack() as stack:
            for split, (images, labels) in places.items():
                if images is None and labels is None:
                    continue
                if images is None or labels is None:
                    raise DatasetError(f"data.custom names only one folder of {split}: name its images and its labels.")
                photos = Place.find(source.root, images, stack)
                maps = Place.find(source.root, labels, stack)
                samples[split], left_out[split] = pair(
                    photos.members(custom.image_suffix or IMAGE_ENDINGS),
                    maps.members(custom.label_suffix or LABEL_ENDINGS),
                    source.allow_partial,
                )
                records += [archive_record(photos.archive), archive_record(maps.archive)]
                if not samples[split]:
                    raise DatasetError(f"{images} in {source.root} holds no image with a label: correct data.custom.")
        if not samples:
            raise DatasetError("data.custom names no images: set train_images and train_labels, or val_*.")
        return Listing(samples, records, custom.classes, custom.palette(), custom.rule(), asdict(custom), left_out)


@dataclass(frozen=True)
class Place:
    """A folder: `archive` is what it lies in (itself, where it is a plain folder), `prefix` its path inside."""

    archive: Archive
    prefix: str

    @classmethod
    def find(cls, root: str, place: str, stack: ExitStack) -> Place:
        """Opens `place`, a folder in `root` or in an archive there; MissingArchive where there is none."""
        path = Path(root) / place
        if path.is_dir():
            return cls(stack.enter_context(open_archive(path)), "")
        for parent in (path, *path.parents):
            if parent.is_file():
                inner = path.relative_to(parent).as_posix()
                return cls(stack.enter_context(open_archive(parent)), "" if inner == "." else f"{inner}/")
        raise MissingArchive(f"{place} is not in {root}: put it there, or correct data.custom or data.root.")

    def members(self, endings: str | tuple[str, ...]) -> dict[str, Member]:
        """The members that end in one of `endings`, by their path below the place without it."""

        def key(name: str) -> str:
            longest = max((ending for ending in as_tuple(endings) if name.endswith(ending)), key=len)
            return name.removeprefix(self.prefix).removesuffix(longest)

        return keyed(members_under(self.archive, self.prefix, endings), key)


def as_tuple(endings: str | tuple[str, ...]) -> tuple[str, ...]:
    """One ending or several, as several."""
    return (endings,) if isinstance(endings, str) else endings
