"""What a prepared dataset holds, as text for a terminal."""

from benchmark.reporting.tables import format_table
from data_scripts.prepare import PreparedDataset


def format_report(dataset: PreparedDataset) -> str:
    """What became of the images of each split, and each class's share of the labelled pixels."""
    splits = dataset.report["splits"]
    lines = []
    for split, part in splits.items():
        dropped = part["dropped"]
        resized = part.get("resized", part.get("mended"))  # as a dataset that an older version built has it
        lines.append(
            f"{split}: {part['images']:,} of {part['listed']:,} images; dropped {dropped['one_value']:,} of one single "
            f"value and {dropped['unlabelled']:,} without a labelled pixel; {resized:,} labels resized to their "
            f"image; {part['ignored_share']:.1%} of the pixels ignored"
        )
    lines += [f"left out, {key}: {what}" for key, what in dataset.report["left_out"].items() if what]
    rows = [[name, *(f"{part['pixel_share'][name]:.3%}" for part in splits.values())] for name in dataset.classes]
    return "\n".join([*lines, format_table(rows, ["pixels of a class", *splits])])
