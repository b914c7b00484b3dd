"""Any Hugging Face dataset with an image and a label-map column, from the Hub or from a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from data_scripts.archive import MissingArchive
from data_scripts.counts import Pair
from data_scripts.custom import Custom, parse_custom
from data_scripts.errors import DatasetError
from data_scripts.listing import Listing, Source
from data_scripts.own import OwnBuilder, share_out


@dataclass(frozen=True)
class HubListing(Listing):
    """`rows` by split hold the undecoded columns `image` and `annotation`; a sample is (split, row number)."""

    rows: dict[str, datasets.Dataset] = field(default_factory=dict)


class Builder(OwnBuilder):
    """The splits that data.custom names."""

    @classmethod
    def list_dataset(cls, source: Source) -> Listing:
        custom = parse_custom(source.custom)
        if custom.path is None:
            raise DatasetError("data.custom.path names no dataset: give its name on the Hub or its folder.")
        splits = {"train": custom.train_split, "validation": None if custom.val_share else custom.val_split}
        if custom.train_split is not None and splits["validation"] == custom.train_split:
            raise DatasetError(
                f"data.custom.train_split and val_split are both {custom.train_split!r}, so the score would say "
                "nothing: name two splits, or set data.custom.val_share."
            )
        rows, records = {}, []
        for split, theirs in splits.items():
            if theirs is not None:
                loaded = load_split(source.root, custom, theirs)
                # The library's fingerprint depends on the path, as a file's time does.
                about = {"time": loaded._fingerprint, "index": loaded.data.nbytes}
                records.append({"name": custom.path, "size": len(loaded), **about})
                rows[split] = undecoded(loaded, custom)
        if not rows:
            raise DatasetError("data.custom names no split: set train_split or val_split.")
        samples = share_out({split: [(split, row) for row in range(len(part))] for split, part in rows.items()}, custom)
        return HubListing(
            samples, records, custom.classes, custom.palette(), custom.rule(), asdict(custom), {}, rows=rows
        )

    def read_pairs(self, samples: Sequence[tuple[str, int]]) -> Iterator[Pair]:
        for split, row in samples:
            yield read_row(self.listing.rows[split], split, row)


def read_row(rows: datasets.Dataset, split: str, row: int) -> Pair:
    """One row of the columns `image` and `annotation`, as stored."""
    cells = rows[row]
    names = [f"row {row} of {split}, column {column}" for column in ("image", "annotation")]
    return Pair(names[0], stored_bytes(cells["image"]), names[1], stored_labels(cells["annotation"]))


def load_split(root: str, custom: Custom, split: str) -> datasets.Dataset:
    """A split as `save_to_disk` left it, or as `load_dataset` finds it; MissingArchive where neither does."""
    path = locate(root, custom)
    try:
        if (Path(path) / "dataset_dict.json").exists():
            return pick(datasets.load_from_disk(path), custom, split)
        if (Path(path) / "state.json").exists():
            return pick({single_split(path): datasets.load_from_disk(path)}, custom, split)
        names = split_names(root, custom)
        if split.partition("[")[0] not in names:
            return pick(dict.fromkeys(names), custom, split)
        return datasets.load_dataset(path, custom.config, split=split, revision=custom.revision)
    except DatasetError:
        raise
    except (KeyError, ValueError) as error:
        raise DatasetError(
            f"{custom.path} has no split {split!r} to read ({one_line(error)}): correct data.custom."
        ) from error
    except Exception as error:  # the Hub's client raises errors of many libraries
        raise unreadable(root, custom, error) from error


def locate(root: str, custom: Custom) -> str:
    """The dataset's folder, or its name on the Hub."""
    local = Path(root) / str(custom.path)
    return str(local) if local.exists() else str(custom.path)


def split_names(root: str, custom: Custom) -> list[str]:
    """The names of the splits that there are."""
    path = locate(root, custom)
    try:
        if (Path(path) / "dataset_dict.json").exists():
            return list(datasets.load_from_disk(path))
        if (Path(path) / "state.json").exists():
            return [single_split(path)]
        return datasets.get_dataset_split_names(path, custom.config, revision=custom.revision)
    except Exception as error:  # the Hub's client raises errors of many libraries
        raise unreadable(root, custom, error) from error


def unreadable(root: str, custom: Custom, error: Exception) -> MissingArchive:
    """What to raise where a dataset is neither here nor can be read from the Hub."""
    return MissingArchive(
        f"The dataset {custom.path} is neither a folder in {root} nor can it be read from the Hub "
        f"({one_line(error)}): correct data.custom.path or check the connection."
    )


def pick(splits: dict[str, Any], custom: Custom, split: str) -> datasets.Dataset:
    """The split of that name; DatasetError lists those that there are."""
    if split not in splits:
        names = ", ".join(map(repr, splits))
        raise DatasetError(
            f"{custom.path} has no split {split!r} but {names}: set data.custom.train_split and val_split (or null), "
            "or data.custom.val_share to draw a validation split."
        )
    return splits[split]


def single_split(path: str) -> str:
    """The name of the one split that `save_to_disk` wrote to a folder: from its info, or the folder's name."""
    info = datasets.load_from_disk(path)
    return str(info.split or (Path(path).name if (Path(path).parent / "dataset_dict.json").exists() else "train"))


def undecoded(rows: datasets.Dataset, custom: Custom) -> datasets.Dataset:
    """The two columns under our names, as stored; DatasetError where one is missing or holds no images."""
    columns = {"image": custom.image_column, "annotation": custom.label_column}
    for ours, column in columns.items():
        if column not in rows.column_names:
            raise DatasetError(
                f"{custom.path} has no column {column!r} but {', '.join(rows.column_names)}: set "
                "data.custom.image_column and label_column."
            )
        feature = rows.features[column]
        if not holds_images(feature) and not (ours == "annotation" and holds_arrays(feature)):
            raise DatasetError(
                f"{custom.path} has no image column {column!r}, which is of the type {feature}: "
                "set data.custom.image_column and label_column to columns of images."
            )
    own = rows.select_columns(list(columns.values())).rename_columns({theirs: us for us, theirs in columns.items()})
    for column in columns:
        if isinstance(own.features[column], datasets.Image):
            own = own.cast_column(column, datasets.Image(decode=False))
    return own


def holds_images(feature: Any) -> bool:
    """Whether a column holds images: decoded ones, structs of bytes and path, plain bytes, or paths."""
    if isinstance(feature, dict):
        return {"bytes", "path"} <= set(feature)
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in (
        "binary",
        "large_binary",
        "string",
    )


def holds_arrays(feature: Any) -> bool:
    """Whether a column holds label maps as arrays of integers."""
    dtype = str(getattr(feature, "dtype", ""))
    return isinstance(feature, datasets.Array2D) and dtype.startswith(("int", "uint", "bool"))


def stored_bytes(cell: Any) -> bytes | None:
    """The bytes of an undecoded image cell, which may only hold a path; None for an empty one."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if cell is None or isinstance(cell, bytes):
        return cell
    try:
        return Path(cell).read_bytes()
    except OSError as error:
        raise DatasetError(f"{cell} cannot be read ({error.strerror}): restore the file the dataset names.") from error


def stored_labels(cell: Any) -> bytes | np.ndarray | None:
    """The bytes of an undecoded label cell, or its array; None for an empty one."""
    return np.asarray(cell, dtype=np.int64) if isinstance(cell, list) else stored_bytes(cell)


def one_line(error: BaseException) -> str:
    """An error's first line."""
    return (str(error) or type(error).__name__).splitlines()[0]
