"""`python -m benchmark throughput data`: training samples that one worker makes in a second, and where its time goes.

A worker is one process with one thread: the input pipeline delivers this times the workers, as long as there is a core
for each. Colour jitter and normalisation are the device's work and not counted.
"""

import time
from collections import Counter

import datasets
import numpy as np
import torch
from torch.utils.data import default_collate

from benchmark.data.loaders import TrainingSamples
from benchmark.data.step_plan import sample_index
from benchmark.data.transforms import choose_crop, crop_image, decode_annotation, decode_image, draw_jitter
from benchmark.recipe.schema import Augment

PARTS = ("decode", "label", "resize", "rest")
BATCH_SIZE = 8


def measure(
    split: datasets.Dataset, *, crop_size: tuple[int, int], seed: int, augment: Augment, seconds: float
) -> dict[str, float]:
    """Make batches of training samples from rows {"image", "annotation"} with one thread for about `seconds`.

    Returns images_per_second, of whole samples, and the milliseconds an image spends in `decode` (of the image),
    `label` (decoding it and choosing the crop), `resize` (resizing, padding and cropping the image) and `rest` (reading
    the row, draws, thumbnail, stacking). Wholes and parts are timed alternately, batch by batch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(TrainingSamples(split, crop_size, seed, augment), seconds)
    finally:
        torch.set_num_threads(threads)


def _measure(samples: TrainingSamples, seconds: float) -> dict[str, float]:
    _batch(samples, 0), _parts(samples, 0)  # warm caches and the decoders' libraries
    total, parts, made = 0.0, Counter(), 0
    end = time.perf_counter() + seconds
    while not made or time.perf_counter() < end:
        start = time.perf_counter()
        _batch(samples, made)
        total += time.perf_counter() - start
        parts += _parts(samples, made)
        made += BATCH_SIZE
    parts["rest"] = max(0.0, total - sum(parts.values()))
    return {"images_per_second": made / total} | {part: 1000 * parts[part] / made for part in PARTS}


def _batch(samples: TrainingSamples, first: int) -> dict:
    return default_collate([samples[position] for position in range(first, first + BATCH_SIZE)])


def _parts(samples: TrainingSamples, first: int) -> Counter:
    """Seconds that the samples from position `first` on spend in each part but the rest."""
    spent = Counter()
    for position in range(first, first + BATCH_SIZE):
        row = samples.split[sample_index(position, len(samples.split), samples.seed)]
        rng = np.random.default_rng([samples.seed, position])
        draw_jitter(rng, samples.augment)
        started = time.perf_counter()
        label = decode_annotation(row["annotation"]["bytes"]).numpy()
        geometry, _ = choose_crop(label, samples.crop_size, rng, samples.augment)
        labelled = time.perf_counter()
        pixels = decode_image(row["image"]["bytes"])
        decoded = time.perf_counter()
        crop_image(pixels, geometry, samples.crop_size)
        spent += Counter(label=labelled - started, decode=decoded - labelled, resize=time.perf_counter() - decoded)
    return spent
