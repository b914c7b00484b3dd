"""The builder that every dataset shares: pairs of bytes in, validated Arrow rows and a report out."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from multiprocess.util import register_after_fork

from data_scripts.archives import Archive, Reader, open_archive
from data_scripts.errors import DatasetError
from data_scripts.images import (
    ImageInfo,
    check_image,
    checksum,
    content_sum,
    decode_labels,
    encode_label_map,
    resize_nearest,
    turned_size,
)
from data_scripts.labels import IGNORE, LabelRule
from data_scripts.listing import Download, Listing, Sample, Source, archive_record, check_counts, require
from data_scripts.problems import Problems

COMMON_VERSION = "3"  # raise it when a change here changes the rows of every dataset
REPORT = "report.json"
CONTENT = "content-"  # how the digest of a dataset's content begins; older ones are of its archives' indexes


class Pair(NamedTuple):
    """The stored bytes of an image and of its label map; `str()` of a name says where it is.

    A label map may also be given as an (H, W) array of integers; None for either is a row without one.
    """

    image_name: Any
    image: bytes | None
    annotation_name: Any
    annotation: bytes | np.ndarray | None


class SegmentationBuilder(datasets.GeneratorBasedBuilder):
    """Base of all builders: a subclass names its classes, archives and rule, and says in `list_samples` what pairs up.

    Rows: `image`, the verbatim bytes of the archive's member, and `annotation`, an 8-bit PNG of train ids, 255 ignored.
    """

    VERSION = datasets.Version("1.0.0")
    DEFAULT_WRITER_BATCH_SIZE = 16  # rows held in memory; a Cityscapes image has 2.5 MB

    classes: ClassVar[tuple[str, ...]]
    colors: ClassVar[tuple[tuple[int, int, int], ...]]
    downloads: ClassVar[tuple[Download, ...]] = ()
    counts: ClassVar[Mapping[str, int]] = {}
    rule: ClassVar[LabelRule]
    resizes_labels: ClassVar[bool] = False
    # The study leaves out images of its four archives whose raw labels have one single value; nobody else's.
    drops_one_value: ClassVar[bool] = True
    missing_hint: ClassVar[str] = ""  # another way out of a missing archive

    def __init__(self, listing: Listing | None, *, cache_dir: str | None, hash: str) -> None:
        """Without a `listing` it can only read what an earlier build left in the cache under `hash`."""
        self.listing = listing
        super().__init__(cache_dir=cache_dir, hash=hash)

    @classmethod
    def list_dataset(cls, source: Source) -> Listing:
        """Lists the archives' pairs; raises MissingArchive, or DatasetError where they are not the official ones."""
        with ExitStack() as stack:
            downloads = cls.choose_downloads(source)
            paths = require(downloads, source.root, cls.missing_hint)
            archives = [stack.enter_context(open_archive(path)) for path in paths]
            samples, left_out = cls.list_samples(archives, source.allow_partial)
            records = [archive_record(archive) for archive in archives]
        check_counts(samples, cls.counts, " with ".join(name_range(downloads)), source.allow_partial)
        return Listing(samples, records, cls.classes, cls.colors, cls.rule, left_out=left_out)

    @classmethod
    def choose_downloads(cls, source: Source) -> Sequence[Download]:
        """Which archives are to be opened; all of them, where a dataset knows no better."""
        return cls.downloads

    @classmethod
    def list_samples(
        cls, archives: Sequence[Archive], allow_partial: bool
    ) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
        """(pairs by split, members left out by split) of the opened `downloads`."""
        raise NotImplementedError

    def read_pairs(self, samples: Sequence[Any]) -> Iterator[Pair]:
        """The stored bytes of each sample, in order."""
        with Reader() as reader:
            for image, annotation in samples:
                yield Pair(image, reader.read(image), annotation, reader.read(annotation))

    def _info(self) -> datasets.DatasetInfo:
        column = datasets.Image(decode=False)
        features = {"image": column, "annotation": column, "checksum": datasets.Value("string")}
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager: object) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "samples": list(samples)})
            for split, samples in self.listing.samples.items()
        ]

    def _generate_examples(self, split: str, samples: Sequence[Any]) -> Iterator[tuple[int, dict]]:
        counts = Counts(len(self.listing.classes))
        for row, pair in enumerate(self.read_pairs(samples)):
            labels = counts.add(pair, self.listing.rule, self.resizes_labels, self.drops_one_value)
            if labels is not None:
                encoded = encode_label_map(labels)
                image = {"bytes": pair.image, "path": member_name(pair.image_name)}
                annotation = {"bytes": encoded, "path": member_name(pair.annotation_name)}
                yield row, {"image": image, "annotation": annotation, "checksum": checksum(pair.image, encoded)}
        counts.save(Path(self._output_dir), split)

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator:
        # Unwrapped here, in the worker, because a pickled exception loses the cause that says what to fix.
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            raise_cause(error)

    def _download_and_prepare(self, dl_manager: object, *args: Any, **kwargs: Any) -> None:
        # Under HF's lock, in the .incomplete folder, which may hold what a killed build left.
        shutil.rmtree(self._output_dir)
        os.makedirs(self._output_dir)
        with ChildProcesses():
            super()._download_and_prepare(dl_manager, *args, **kwargs)
        self._write_report(Path(self._output_dir))

    def _write_report(self, folder: Path) -> None:
        listing, problems = self.listing, Problems(self.listing.problems)
        counts = {split: Counts.merged(folder, split, len(listing.classes)) for split in listing.samples}
        for part in counts.values():
            problems.merge(part.problems)
        problems.raise_if_any(listing.rule.colors)
        self.check_counts(counts)
        report = {
            "dataset": self.name,
            "version": builder_version(type(self)),
            "digest": content_digest(listing, counts),
            "archives": listing.archives,
            "left_out": listing.left_out,
            "classes": list(listing.classes),
            "colors": [list(color) for color in listing.colors],
            "splits": {
                split: counts[split].report(len(samples), listing.classes) for split, samples in listing.samples.items()
            },
        }
        (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")

    def check_counts(self, counts: Mapping[str, Counts]) -> None:
        """Raise DatasetError where what was found cannot be trained on as it is meant."""
        for split, part in counts.items():
            if part.images == 0:
                raise DatasetError(f"No {split} image of {self.name} has a usable label map: check the labels' values.")


class Counts:
    """What was found in the samples of one split, or in one worker's part of them."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.images = self.one_value = self.unlabelled = self.resized = self.turned = 0
        self.first: dict[str, str] = {}  # the first image that was left out or turned, by the reason
        self.pixels = np.zeros(256, dtype=np.int64)  # by train id, IGNORE among them
        self.values: set[int] = set()  # raw ones, as long as they are few
        self.content = self.samples = 0  # the sums of the samples' content sums, with and without their names
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
        for what, data in ((pair.image_name, pair.image), (pair.annotation_name, pair.annotation)):
            if data is None:
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
        self.pixels += pixels
        self.content += content_sum(name, pair.image, labels)
        self.samples += content_sum("", pair.image, labels)
        self._note_extremes(info, name)
        return labels

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
            for name in ("images", "one_value", "unlabelled", "resized", "turned", "content", "samples"):
                setattr(total, name, getattr(total, name) + part[name])
            total.pixels += np.asarray(part["pixels"])
            total.values.update(part["values"])
            total.problems.merge(Problems(part["problems"]))
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
            "first": self.first,
            "extremes": self.extremes,
            "pixels": {name: int(count) for name, count in zip(classes, pixels, strict=True)},
            "pixel_share": {name: int(count) / labelled for name, count in zip(classes, pixels, strict=True)},
            "ignored_share": int(self.pixels[IGNORE]) / max(int(self.pixels.sum()), 1),
        }


def wrong_size(pair: Pair, labels: np.ndarray, info: ImageInfo) -> str:
    """The sentence about a label map of another size than its image."""
    sizes = f"{labels.shape[1]}x{labels.shape[0]} pixels but its image {info.width}x{info.height}"
    if info.turned and labels.shape == turned_size(pair.image):
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


def builder_version(builder: type[SegmentationBuilder]) -> str:
    """Version of a dataset's rows: the shared code's and its own."""
    return f"{builder.__module__.rpartition('.')[2]}-{builder.VERSION}-{COMMON_VERSION}"


def member_name(name: Any) -> str:
    """The path column of a row: the member's name inside its archive, in UTF-8."""
    name = getattr(name, "name", str(name))
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def raise_cause(error: BaseException) -> NoReturn:
    """Raises the DatasetError that HF wrapped into `error`, or one on what the disk refused, else `error` itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DatasetError):
            raise cause
        if isinstance(cause, OSError):
            raise DatasetError(disk_sentence(cause)) from error
        cause = cause.__cause__ or cause.__context__
    raise error


def disk_sentence(error: OSError) -> str:
    """One sentence on what the disk refused, naming the remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "enough disk space" in str(error):
        return "No space is left for the datasets cache: free some or let data.cache_dir name a folder on another disk."
    return f"The dataset cannot be read or built ({error}): check the paths data.root and data.cache_dir."


class ChildProcesses:
    """While a build runs, its worker processes end with it, however it ends, and take no part in its signals.

    datasets makes a pool and a manager, whose processes would outlive a main process that is killed. They are told of
    by `multiprocess` itself, which calls what is registered in each process that it starts, as long as the object that
    is registered lives.
    """

    def __enter__(self) -> None:
        self.registered = self.Child()
        register_after_fork(self.registered, self.Child.start)

    def __exit__(self, *_: object) -> None:
        del self.registered

    class Child:
        """What a child process does when it starts."""

        def start(self) -> None:
            if signal.set_wakeup_fd(-1) != -1:  # the parent's: a signal to this process would be taken for its own
                for number in signal.valid_signals():
                    if callable(signal.getsignal(number)):
                        signal.signal(number, signal.SIG_DFL)
            threading.Thread(target=self.wait_for_parent, args=(os.getppid(),), daemon=True).start()

        def wait_for_parent(self, parent: int) -> None:
            while os.getppid() == parent:
                time.sleep(0.5)
            os._exit(1)


def name_range(downloads: Sequence[Download]) -> list[str]:
    """The archives' file names, the middle of a long list left out."""
    names = [download.file for download in downloads]
    return names if len(names) <= 4 else [names[0], "...", names[-1]]
