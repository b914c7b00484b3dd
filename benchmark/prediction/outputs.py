"""What becomes of label maps: palette PNGs, overlays, videos, and a table of each class's share."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmark.errors import UserError
from benchmark.prediction.inputs import FOLDERS, SHARES, open_image
from benchmark.prediction.video import Frame, VideoWriter
from benchmark.reporting.pictures import blend, class_shares, draw_labels, legend, overlay


class Outputs:
    """The folder that `predict` writes: labels/, overlays/ and shares.csv; everything is written as it comes.

    Attributes:
        count: label maps that were added.
        totals: float64 (C,), the sum of their shares in per cent.

    Raises:
        UserError: the folder cannot be written, or files would be replaced that are no predictions.
    """

    def __init__(self, folder: Path, classes: Sequence[str], colors: Sequence[Sequence[int]]):
        self.folder, self.classes, self.colors = folder, classes, colors
        self.count, self.totals = 0, np.zeros(len(classes))
        self.video: tuple[str, VideoWriter] | None = None
        if not (folder / SHARES).is_file():
            for place in (folder / name for name in FOLDERS):
                if place.is_dir() and any(place.iterdir()):
                    raise UserError(f"{place} holds what `predict` did not write: name another folder with --output.")
        try:
            for name in FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
            self.stream = (folder / SHARES).open("w", newline="")
        except OSError as error:
            raise UserError(f"--output {folder} cannot be written ({error.strerror}): name another folder.") from None
        self.table = csv.writer(self.stream)
        self.table.writerow(["image", *classes])

    def add_image(self, name: str, file: Path, labels: np.ndarray) -> None:
        """Write the label map, uint8 (H, W), of an image, and its overlay."""
        label_file, overlay_file = self._place("labels", f"{name}.png"), self._place("overlays", f"{name}.jpg")
        draw_labels(labels, self.colors).save(label_file)
        # Read once more, so that the images of a batch need not all be kept.
        overlay(open_image(file).convert("RGB"), labels, self.classes, self.colors).save(overlay_file, quality=92)
        self._add_shares(name, labels)

    def add_frame(self, name: str, number: int, frame: Frame, labels: np.ndarray) -> None:
        """Write a frame with its label map, uint8 (H, W), to the video of this name; frames come in order."""
        if self.video is None or self.video[0] != name:
            self._close_video()
            self.video = name, VideoWriter(self._place("overlays", f"{name}.mp4"))
            legend(self.classes, self.colors).save(self.folder / "legend.png")
        pixels = np.asarray(blend(Image.fromarray(frame.pixels), labels, self.colors))
        self.video[1].write(frame._replace(pixels=pixels))
        self._add_shares(f"{name}:{number}", labels)

    def close(self) -> None:
        self._close_video()
        self.stream.close()

    def _close_video(self) -> None:
        if self.video is not None:
            self.video[1].close()
            self.video = None

    def _place(self, kind: str, name: str) -> Path:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _add_shares(self, name: str, labels: np.ndarray) -> None:
        shares = class_shares(labels, len(self.classes))
        self.table.writerow([name, *(f"{share:.3f}" for share in shares)])
        self.count, self.totals = self.count + 1, self.totals + shares
