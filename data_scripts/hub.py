"""Any Hugging Face dataset with an image and a label-map column, from the Hub or from a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets

from data_scripts.archives import MissingArchive
from data_scripts.builder import Pair, SegmentationBuilder
from data_scripts.custom import Custom, parse_custom
from data_scripts.errors import DatasetError
from data_scripts.listing import Listing, Source


@dataclass(frozen=True)
class HubListing(Listing):
    """`rows` by split hold the undecoded columns `image` and `annotation`; a sample is (split, row number)."""

    rows: dict[str, datasets.Dataset] = field(default_factory=dict)


class Builder(SegmentationBuilder):
    """The splits that data.custom names."""

    @classmethod
    def list_dataset(cls, source: Source) -> Listing:
        custom = parse_custom(source.custom)
        if custom.path is None:
            raise DatasetError("data.custom.path names no dataset: give its name on the Hub or its folder.")
        rows, records = {}, []
        for split, theirs in (("train", custom.train_split), ("validation", custom.val_split)):
            if theirs is not None:
                loaded = load_split(source.root, custom, theirs)
                # The library's fingerprint depends on the path, as a file's time does.
                about = {"time": loaded._fingerprint, "index": loaded.data.nbytes}
                records.append({"name": custom.path, "size": len(loaded), **about})
                rows[split] = undecoded(loaded, custom)
        if not rows:
            raise DatasetError("data.custom names no split: set train_split or val_split.")
        samples = {split: [(split, row) for row in range(len(part))] for split, part in rows.items()}
        return HubListing(
            samples, records, custom.classes, custom.palette(), custom.rule(), asdict(custom), {}, rows=rows
        )

    def read_pairs(self, samples: Sequence[tuple[str, int]]) -> Iterator[Pair]:
        for split, row in samples:
            cells = self.listing.rows[split][row]
            names = [f"row {row} of {split}, column {column}" for column in ("image", "annotation")]
            yield Pair(names[0], stored_bytes(cells["image"]), names[1], stored_bytes(cells["annotation"]))


def load_split(root: str, custom: Custom, split: str) -> datasets.Dataset:
    """A split as `save_to_disk` left it, or as `load_dataset` finds it; MissingArchive where neither does."""
    local = Path(root) / custom.path
    path = str(local) if local.exists() else custom.path
    try:
        if (Path(path) / "dataset_dict.json").exists():
            return datasets.load_from_disk(path)[split]
        if (Path(path) / "state.json").exists():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, custom.config, split=split, revision=custom.revision)
    except (KeyError, ValueError) as error:
        raise DatasetError(
            f"{custom.path} has no split {split!r} to read ({one_line(error)}): correct data.custom."
        ) from error
    except Exception as error:  # the Hub's client raises errors of many libraries
        raise MissingArchive(
            f"The dataset {custom.path} is neither a folder in {root} nor can it be had from the Hub "
            f"({one_line(error)}): correct data.custom.path or check the connection."
        ) from error


def undecoded(rows: datasets.Dataset, custom: Custom) -> datasets.Dataset:
    """The two columns under our names, as stored; DatasetError where one is missing or holds no images."""
    columns = {"image": custom.image_column, "annotation": custom.label_column}
    for column in columns.values():
        if not isinstance(rows.features.get(column), datasets.Image):
            raise DatasetError(
                f"{custom.path} has no image column {column!r} but {', '.join(rows.column_names)}: "
                "set data.custom.image_column and label_column to columns of the type Image."
            )
    ours = rows.select_columns(list(columns.values())).rename_columns({theirs: us for us, theirs in columns.items()})
    for column in columns:
        ours = ours.cast_column(column, datasets.Image(decode=False))
    return ours


def stored_bytes(cell: dict) -> bytes:
    """The bytes of an undecoded image cell, which may only hold a path."""
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def one_line(error: BaseException) -> str:
    """An error's first line."""
    return (str(error) or type(error).__name__).splitlines()[0]
