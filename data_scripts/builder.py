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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import datasets
from datasets.exceptions import DatasetGenerationError
from multiprocess.util import register_after_fork

from data_scripts.archive import Archive
from data_scripts.archive_formats import Reader, open_archive
from data_scripts.counts import Counts, Pair, content_digest, member_name
from data_scripts.errors import DatasetError
from data_scripts.images import (
    checksum,
    encode_label_map,
)
from data_scripts.labels import LabelRule
from data_scripts.listing import (
    Download,
    Files,
    Listing,
    Sample,
    Source,
    archive_record,
    check_official_counts,
    pair_files,
    require,
)
from data_scripts.problems import Problems

COMMON_VERSION = "4"  # raise it when a change here changes the rows or the report of every dataset
REPORT = "report.json"


class SegmentationBuilder(datasets.GeneratorBasedBuilder):
    """Base of all builders: a subclass names its classes, archives and rule, and says in `pairs` where pairs lie.

    Rows: `image`, the verbatim bytes of the archive's member, and `annotation`, an 8-bit PNG of train ids, 255 ignored.
    """

    VERSION = datasets.Version("1.0.0")
    DEFAULT_WRITER_BATCH_SIZE = 16  # rows held in memory; a Cityscapes image has 2.5 MB

    classes: ClassVar[tuple[str, ...]]
    colors: ClassVar[tuple[tuple[int, int, int], ...]]
    downloads: ClassVar[tuple[Download, ...]] = ()
    counts: ClassVar[Mapping[str, int]] = {}
    pairs: ClassVar[Mapping[str, Sequence[tuple[Files, Files]]]] = {}  # by split, images and their label maps
    rule: ClassVar[LabelRule]
    resizes_labels: ClassVar[bool] = False
    drops_one_value: ClassVar[bool] = False  # images whose raw labels have one single value, as the study does
    mapping: ClassVar[str] = "the builder's rule"  # what says which class a value is, in errors
    missing_hint: ClassVar[str] = ""  # another way out of a missing archive

    listing: Listing  # what is to be built; absent where only the cache is read

    def __init__(self, listing: Listing | None, *, cache_dir: str | None, hash: str) -> None:
        """Without a `listing` it can only read what an earlier build left in the cache under `hash`."""
        if listing is not None:
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
        check_official_counts(samples, cls.counts, " with ".join(name_range(downloads)), source.allow_partial)
        return Listing(samples, records, cls.classes, cls.colors, cls.rule, left_out=left_out)

    @classmethod
    def choose_downloads(cls, source: Source) -> Sequence[Download]:
        """Which archives are to be opened; all of them, where a dataset knows no better."""
        return cls.downloads

    @classmethod
    def list_samples(
        cls, archives: Sequence[Archive], allow_partial: bool
    ) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
        """(pairs by split, members left out by split) of the opened `downloads`: those of `pairs`."""
        listed = {split: pair_files(archives, pairs, allow_partial) for split, pairs in cls.pairs.items()}
        samples = {split: found for split, (found, _) in listed.items()}
        return samples, {split: left_out for split, (_, left_out) in listed.items()}

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
        problems.raise_if_any(listing.rule.colors, self.mapping)
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


def builder_version(builder: type[SegmentationBuilder]) -> str:
    """Version of a dataset's rows: the shared code's, its own, and a digest of what its class says of labels."""
    facts = [
        getattr(builder, name, None) for name in ("classes", "colors", "rule", "resizes_labels", "drops_one_value")
    ]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return f"{builder.__module__.rpartition('.')[2]}-{builder.VERSION}-{COMMON_VERSION}-{digest}"


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
    if error.errno == errno.EROFS:
        return (
            f"The datasets cache cannot be written ({error}), and reading it needs a lock: let data.cache_dir name a "
            "copy of it that can be written."
        )
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
