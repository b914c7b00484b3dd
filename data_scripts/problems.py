"""What is wrong with a dataset, collected over all of its samples, so that it is said at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_scripts.errors import DatasetError

MOST = 20  # sentences of one kind that are shown


class Problems:
    """Sentences by kind, and label values that no class has, with their pixels.

    Attributes:
        sentences: of each kind the first MOST.
        counts: how many there were of each kind.
        values: by stored value: pixels, images, the first file's name.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {"sentences": {}, "counts": {}, "values": {}}
        self.sentences: dict[str, list[str]] = dict(saved["sentences"])
        self.counts: dict[str, int] = dict(saved["counts"])
        self.values: dict[int, list[Any]] = {int(value): list(entry) for value, entry in saved["values"].items()}

    def add(self, kind: str, sentence: str) -> None:
        """Note a sentence that says what to do."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        known = self.sentences.setdefault(kind, [])
        if len(known) < MOST:
            known.append(sentence)

    def add_value(self, value: int, pixels: int, where: str) -> None:
        """Note a label value that no class has."""
        entry = self.values.setdefault(value, [0, 0, where])
        entry[0] += pixels
        entry[1] += 1

    def merge(self, other: Problems) -> None:
        """Add what another worker found."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.sentences[kind] = (self.sentences.get(kind, []) + other.sentences.get(kind, []))[:MOST]
        for value, (pixels, images, where) in other.values.items():
            entry = self.values.setdefault(value, [0, 0, where])
            entry[0] += pixels
            entry[1] += images

    def to_json(self) -> dict[str, Any]:
        """As it is saved for `merge` in another process."""
        return {"sentences": self.sentences, "counts": self.counts, "values": self.values}

    def raise_if_any(self, colors: bool, mapping: str = "data.custom.label_mapping") -> None:
        """Raise DatasetError with every problem; one alone is one sentence.

        Args:
            colors: whether values are packed colours.
            mapping: what says which class a value is.
        """
        lines = [sentence for kind in sorted(self.sentences) for sentence in sorted(self.sentences[kind])]
        for kind, count in self.counts.items():
            if count > MOST:
                lines.append(f"... and {count - MOST:,} more like the last one ({kind}).")
        by_pixels = sorted(self.values.items(), key=lambda item: -item[1][0])
        for value, (pixels, images, where) in by_pixels[:MOST]:
            key = f"'{value >> 16},{value >> 8 & 255},{value & 255}'" if colors else str(value)
            shown = f"colour {key.strip(chr(39))}" if colors else f"value {value}"
            lines.append(
                f"{where} holds the label {shown}, which no class has ({pixels:,} pixels of {images:,} image(s)): add "
                f"{key} to {mapping}, as a class or as 255 (ignore), or correct the labels."
            )
        if len(by_pixels) > MOST:
            lines.append(f"... and {len(by_pixels) - MOST:,} more values that no class has.")
        if len(lines) == 1:
            raise DatasetError(lines[0])
        if lines:
            raise DatasetError("\n".join([f"{len(lines)} problems in the dataset; fix each and run it again:", *lines]))
