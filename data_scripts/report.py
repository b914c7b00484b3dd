"""What a prepared dataset holds, as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_scripts.errors import printable
from data_scripts.tables import format_table

if TYPE_CHECKING:
    from data_scripts.preparation import PreparedDataset


def format_report(dataset: PreparedDataset) -> str:
    """What became of the images of each split, and each class's pixels."""
    splits = dataset.report["splits"]
    lines = []
    for split, part in splits.items():
        lines.append(f"{split}: {part['images']:,} of {part['listed']:,} images")
        dropped, first = part["dropped"], part["first"]
        notes = {
            "left out, because their labels have one single value, as the study does": dropped["one_value"],
            f"left out, because no pixel is labelled, such as {first.get('unlabelled')}": dropped["unlabelled"],
            "labels resized to their image": part["resized"],
            f"turned by EXIF, such as {first.get('turned')}: pixels and labels are taken as stored": part["turned"],
            f"JPEGs of which the decoder warns that their data are damaged, such as {first.get('damaged')}: look at "
            "them": part["damaged"],
        }
        lines += [f"  {count:,} {note}" for note, count in notes.items() if count]
        if part["ignored_share"]:
            lines.append(f"  {part['ignored_share']:.1%} of the pixels are ignored")
    lines += [f"left out: {what} {key}" for key, what in dataset.report["left_out"].items() if what]
    rows = [
        [
            name,
            *(
                cell
                for part in splits.values()
                for cell in (f"{part['pixels'][name]:,}", f"{part['pixel_share'][name]:.3%}")
            ),
        ]
        for name in dataset.classes
    ]
    header = ["class", *(cell for split in splits for cell in (f"{split} pixels", "share"))]
    return printable_lines("\n".join([*lines, format_table(rows, header)]))


def printable_lines(text: str) -> str:
    """`text` with control characters as escapes, but for its line feeds."""
    return "\n".join(printable(line) for line in text.split("\n"))
