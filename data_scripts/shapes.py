"""Synthetic scenes, drawn from a seed: the dataset that needs no download.

Between a sky and a ground of noisy texture lie circles, squares, triangles and stars of any size and rotation that hide
one another. Each class draws its hue around one of its own, wide enough to reach its neighbours': colour helps, and
shape decides.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from data_scripts.builder import SegmentationBuilder
from data_scripts.counts import Pair
from data_scripts.images import encode_png
from data_scripts.labels import LabelRule
from data_scripts.listing import Listing, Source

SEED = 0
COUNTS = {"train": 256, "validation": 64}
HUES = {"sky": 0.58, "ground": 0.28, "circle": 0.97, "square": 0.12, "triangle": 0.43, "star": 0.80}
HUE_SPREAD = 0.09  # uniform, to either side of a class's own hue
OBJECTS = ("circle", "square", "triangle", "star")


class Builder(SegmentationBuilder):
    """256 training and 64 validation scenes of 160x120 to 192x160 pixels; a sample is its key (seed, split, index)."""

    classes = tuple(HUES)
    colors = ((70, 130, 180), (107, 142, 35), (220, 20, 60), (250, 170, 30), (0, 150, 110), (148, 60, 200))
    counts = COUNTS
    rule = LabelRule({train_id: train_id for train_id in range(len(HUES))})

    @classmethod
    def list_dataset(cls, source: Source) -> Listing:
        samples = {
            split: [(SEED, number, index) for index in range(count)]
            for number, (split, count) in enumerate(COUNTS.items())
        }
        return Listing(samples, [], cls.classes, cls.colors, cls.rule, options={"seed": SEED, "counts": COUNTS})

    def read_pairs(self, samples: Sequence[tuple[int, int, int]]) -> Iterator[Pair]:
        for key in samples:
            image, labels = draw_scene(np.random.default_rng(key))
            name = "-".join(map(str, key)) + ".png"
            yield Pair(f"images/{name}", encode_png(image), f"labels/{name}", encode_png(labels))


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One scene: (H, W, 3) uint8 pixels and (H, W) uint8 train ids."""
    width, height = int(rng.integers(160, 193)), int(rng.integers(120, 161))
    names = list(HUES)
    labels = Image.new("L", (width, height), names.index("sky"))
    colors = Image.new("RGB", (width, height), draw_color("sky", rng))
    horizon = int(height * rng.uniform(0.3, 0.7))
    paint(labels, colors, [(0, horizon), (width, horizon), (width, height), (0, height)], "ground", rng)
    for _ in range(int(rng.integers(4, 8))):
        name = OBJECTS[int(rng.integers(len(OBJECTS)))]
        radius = rng.uniform(20, 36)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        paint(labels, colors, outline(name, x, y, radius, rng.uniform(0, 2 * math.pi)), name, rng)
    texture = smooth_noise(rng, height, width, cell=12) * 30 + rng.uniform(-12, 12, (height, width, 3))
    pixels = np.asarray(colors, dtype=np.float64) + texture
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), np.asarray(labels)


def paint(labels: Image.Image, colors: Image.Image, polygon: list, name: str, rng: np.random.Generator) -> None:
    """Fills `polygon` on both maps: what is painted later hides what was there."""
    ImageDraw.Draw(labels).polygon(polygon, fill=list(HUES).index(name))
    ImageDraw.Draw(colors).polygon(polygon, fill=draw_color(name, rng))


def draw_color(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """An 8-bit RGB colour of the class: its hue varies around the class's own, saturation and value more widely."""
    hue = HUES[name] + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.35, 0.9), rng.uniform(0.45, 0.95))
    return round(red * 255), round(green * 255), round(blue * 255)


def outline(name: str, x: float, y: float, radius: float, angle: float) -> list[tuple[int, int]]:
    """The corners, in whole pixels, of a shape around (x, y) whose farthest corner is `radius` away."""
    corners, inner = {"circle": (40, 1.0), "square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.5)}[name]
    stretch = 1.25 if name == "triangle" else 1.0  # a triangle fills least of its circle
    points = []
    for corner in range(corners):
        reach = radius * stretch * (inner if corner % 2 else 1.0)
        turn = angle + 2 * math.pi * corner / corners
        points.append((round(x + reach * math.cos(turn)), round(y + reach * math.sin(turn))))
    return points


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """(H, W, 1) in about -1..1: random gray levels on a grid of `cell` pixels, interpolated."""
    grid = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    image = Image.fromarray(grid).resize((width, height), Image.Resampling.BILINEAR)
    return (np.asarray(image, dtype=np.float64)[..., None] - 127.5) / 127.5
