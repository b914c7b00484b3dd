"""From a dataset's name to Arrow on disk: built once, and found again even when its archives were removed."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_scripts.archive import MissingArchive
from data_scripts.errors import DatasetError
from data_scripts.listing import Source

if TYPE_CHECKING:
    import datasets

    from data_scripts.builder import SegmentationBuilder

OWN = ("folder", "hub")  # one's own data, whose classes a recipe names
DATASETS = ("shapes", "camvid", "ade20k", "pascal_voc", "cityscapes", "gta5", "coco_stuff", "acdc", "loveda", *OWN)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset on disk.

    splits: "train" and/or "validation"; columns `image` (verbatim bytes of the archive's member) and `annotation`
        (8-bit PNG of train ids, 255 = ignore), both `datasets.Image(decode=False)`: {"bytes", "path"}; and `checksum`
        of both (`data_scripts.images.checksum`).
    classes, colors: official names and 8-bit RGB colours; the index is the train id.
    fingerprint: {"counts": {split: rows}, "digest": of the content: names, pixels, labels and classes}.
    report: per split the images, those dropped, labels resized to their image, and pixel shares; JSON-able.
    folder: where the Arrow files and report.json lie.
    """

    name: str
    splits: dict[str, datasets.Dataset]
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    fingerprint: dict[str, Any]
    report: dict[str, Any]
    folder: str


def prepare(
    name: str,
    *,
    root: str | os.PathLike,
    cache_dir: str | os.PathLike | None = None,
    allow_partial: bool = False,
    num_proc: int | None = None,
    custom: Mapping[str, Any] | None = None,
) -> PreparedDataset:
    """Builds the dataset `name` from the archives in `root`, or finds it built in `cache_dir` (None: HF's own cache).

    `allow_partial` accepts archives with fewer pairs than the official ones; `custom` holds the keys of
    `data_scripts.custom.Custom` for folder and hub datasets. Raises DatasetError, in one sentence that says what to do.
    """
    builder_class = find_builder(name)
    from data_scripts.builder import builder_version, disk_sentence

    source = Source(os.path.abspath(os.path.expanduser(root)), allow_partial, dict(custom or {}))
    cache_dir = None if cache_dir is None else os.path.abspath(os.path.expanduser(cache_dir))
    try:
        try:
            listing = builder_class.list_dataset(source)
        except MissingArchive as missing:
            return load(name, find_recorded_build(builder_class, source, cache_dir, missing))
        key = listing.digest(builder_version(builder_class))
        try:
            builder = builder_class(listing, cache_dir=cache_dir, hash=key)
        except (ValueError, TypeError, KeyError) as error:  # from a damaged dataset_info.json
            place = Path(cache_dir or "the datasets cache") / name
            raise DatasetError(f"The folder of {key} in {place} is damaged ({error}): remove it.") from error
        builder.download_and_prepare(num_proc=num_proc)
        record_build(builder, source, cache_dir)
    except OSError as error:
        raise DatasetError(disk_sentence(error)) from error
    return load(name, builder)


def find_builder(name: str) -> type[SegmentationBuilder]:
    """The builder of a dataset; DatasetError names the nearest ones where there is none."""
    if name not in DATASETS:
        nearest = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.3) or DATASETS
        if name.isidentifier() and (Path(__file__).parent / f"{name}.py").exists():
            raise DatasetError(f"{name} is not among DATASETS of data_scripts/preparation.py: add it there.")
        raise DatasetError(f"There is no dataset {name!r}: take {' or '.join(nearest)}.")
    return importlib.import_module(f"data_scripts.{name}").Builder


def class_names(name: str, custom: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The classes of a dataset, in the order of train ids, without its archives; `custom` as in `prepare`."""
    builder_class = find_builder(name)
    if name not in OWN:
        return builder_class.classes
    from data_scripts.custom import parse_custom

    return parse_custom(custom or {}).classes


def load(name: str, builder: SegmentationBuilder) -> PreparedDataset:
    """What a finished build left in the cache; DatasetError where it was damaged since."""
    from data_scripts.builder import REPORT

    folder = builder.cache_dir
    try:
        report = json.loads((Path(folder) / REPORT).read_text(encoding="utf-8"))
        splits = {split: builder.as_dataset(split=split) for split in report["splits"]}
        for split, rows in splits.items():
            rows.data.validate(full=True)  # offsets of damaged files would be read beyond their end
            if len(rows) != report["splits"][split]["images"]:
                raise ValueError(f"{split} has {len(rows)} of {report['splits'][split]['images']} images")
    except Exception as error:  # pyarrow and datasets raise many on damaged files
        raise DatasetError(f"{folder} is damaged ({error}): remove it and run the same command again.") from error
    return PreparedDataset(
        name=name,
        splits=splits,
        classes=tuple(report["classes"]),
        colors=tuple(tuple(color) for color in report["colors"]),
        fingerprint={"counts": {split: len(rows) for split, rows in splits.items()}, "digest": report["digest"]},
        report=report,
        folder=folder,
    )


def record_build(builder: SegmentationBuilder, source: Source, cache_dir: str | None) -> None:
    """Note in the cache which build this source led to, for when its archives are removed."""
    record = record_path(type(builder), source, cache_dir)
    if record.exists() and record.read_text(encoding="utf-8") == builder.hash:
        return
    partial = record.with_suffix(f".{os.getpid()}")
    partial.write_text(builder.hash, encoding="utf-8")
    os.replace(partial, record)


def find_recorded_build(
    builder_class: type[SegmentationBuilder], source: Source, cache_dir: str | None, missing: MissingArchive
) -> SegmentationBuilder:
    """The build that this source last led to; raises `missing` where there is none."""
    record = record_path(builder_class, source, cache_dir)
    if not record.exists():
        raise missing
    builder = builder_class(None, cache_dir=cache_dir, hash=record.read_text(encoding="utf-8"))
    if not (Path(builder.cache_dir) / "dataset_info.json").exists():
        raise missing
    logger.warning("%s Using what was built from it: %s", missing, builder.cache_dir)
    return builder


def record_path(builder_class: type[SegmentationBuilder], source: Source, cache_dir: str | None) -> Path:
    """Where `record_build` notes a source's last build."""
    import datasets

    from data_scripts.builder import builder_version

    text = json.dumps([builder_version(builder_class), source.root, source.allow_partial, source.custom], default=str)
    name = builder_class.__module__.rpartition(".")[2]
    return (
        Path(cache_dir or datasets.config.HF_DATASETS_CACHE)
        / name
        / f"last-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    )
