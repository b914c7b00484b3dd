"""Videos through PyAV: frames in, frames with their label maps laid over them out."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmark.errors import UserError

CODECS = ("libx264", "mpeg4")  # the first that this PyAV can write


class Frame(NamedTuple):
    """One frame: pixels, uint8 (H, W, 3), and its time, `pts` times `time_base` in seconds."""

    pixels: np.ndarray
    pts: int
    time_base: Fraction


def check_video() -> None:
    """Raises UserError where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError(
            "A video needs PyAV: run pip install 'vfm-segmentation-benchmark[video]', or name images."
        ) from None


def num_frames(file: Path) -> int:
    """How many frames the file says it has; 0 where it does not say, or cannot be read."""
    import av

    try:
        with av.open(str(file)) as container:
            return container.streams.video[0].frames
    except Exception:  # reading the frames will say why
        return 0


def read_frames(file: Path) -> Iterator[Frame]:
    """The frames of a video's first stream, turned by its rotation; one that is to be mirrored stays as it is stored.

    Raises:
        OSError, ValueError, IndexError: of PyAV, where the file is no video or is torn.
    """
    import av

    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or Fraction(25)
        for number, frame in enumerate(container.decode(stream)):
            pts, time_base = frame.pts, frame.time_base
            if pts is None or time_base is None:
                pts, time_base = number, 1 / rate
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            yield Frame(np.ascontiguousarray(pixels), pts, time_base)


class VideoWriter:
    """Writes frames of one size to an MP4 file at their own times; without sound.

    A frame's last row or column is left out where its height or width is odd, which the codec does not take.
    """

    def __init__(self, file: Path):
        import av

        self.container = av.open(str(file), "w")
        self.codec = next(name for name in CODECS if name in av.codecs_available)
        self.stream: Any = None

    def write(self, frame: Frame) -> None:
        import av

        height, width = (length // 2 * 2 for length in frame.pixels.shape[:2])
        if self.stream is None:
            self.stream = self.container.add_stream(self.codec)
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
            self.stream.codec_context.time_base = frame.time_base
        encoded = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels[:height, :width]), format="rgb24")
        encoded.pts, encoded.time_base = frame.pts, frame.time_base
        self.container.mux(self.stream.encode(encoded))

    def close(self) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()
