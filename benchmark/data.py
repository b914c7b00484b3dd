"""From a prepared dataset to batches: which sample comes at which step, and the loaders that deliver it.

Training samples are one endless stream, one seeded permutation of the dataset after another. Step t takes the positions
[t * G, (t + 1) * G) of it, G being the global batch, and each sample is a pure function of (seed, position): not of
workers, processes, or what ran before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmark.errors import UserError
from benchmark.models.errors import ModelError
from benchmark.models.windows import resize_to_cover
from benchmark.preemption import outlive_signals
from benchmark.transforms import DecodeError, decode_annotation, decode_image, training_sample


class SampleError(UserError):
    """A row of the prepared dataset that cannot be decoded."""

    def __str__(self) -> str:
        # A DataLoader hands on its worker's error as a whole traceback; the sentence is its last line.
        return super().__str__().rstrip().rpartition(f"{type(self).__name__}: ")[2]


def micro_batch_size(global_batch_size: int, world_size: int, most: int) -> tuple[int, int]:
    """Images that one process forwards at once, and how often it does so before an optimizer step.

    The first is the largest divisor of global_batch_size / world_size that is not above `most`. Raises UserError where
    the processes cannot share the batch evenly.
    """
    if world_size > global_batch_size:
        raise UserError(
            f"{world_size} processes cannot share a step of {global_batch_size} images: "
            f"launch at most {global_batch_size} processes or raise train.global_batch_size."
        )
    if global_batch_size % world_size:
        raise UserError(
            f"train.global_batch_size {global_batch_size} does not divide by {world_size} processes: "
            f"set it to a multiple of {world_size} or launch another number of processes."
        )
    share = global_batch_size // world_size
    micro = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    return micro, share // micro


def sample_index(position: int, num_samples: int, seed: int) -> int:
    """Which of `num_samples` rows stands at `position` of the training stream."""
    epoch, place = divmod(position, num_samples)
    return int(_permutation(num_samples, seed, epoch)[place])


@lru_cache(maxsize=2)  # workers run ahead across the border of two epochs
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    # A spawn key, for [seed, epoch] would give the bits that the sample at position `epoch` draws from.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(num_samples)


@dataclass(frozen=True)
class MicroBatches:
    """The positions of each micro batch of one process, step by step: a DataLoader's batch sampler."""

    start_step: int
    steps: int
    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[range]:
        share = self.global_batch_size // self.world_size
        for step in range(self.start_step, self.steps):
            first = step * self.global_batch_size + self.rank * share
            for start in range(first, first + share, self.micro_batch_size):
                yield range(start, start + self.micro_batch_size)

    def __len__(self) -> int:
        accumulation = self.global_batch_size // self.world_size // self.micro_batch_size
        return max(0, self.steps - self.start_step) * accumulation


@dataclass(frozen=True)
class TrainingSamples(Dataset):
    """The training stream by position; rows are {"image", "annotation"}, each {"bytes", "path"}."""

    split: datasets.Dataset
    crop_size: tuple[int, int]
    seed: int

    def __getitem__(self, position: int) -> dict:
        index = sample_index(position, len(self.split), self.seed)
        row = self.split[index]
        try:
            return training_sample(
                row["image"]["bytes"],
                row["annotation"]["bytes"],
                crop_size=self.crop_size,
                seed=self.seed,
                position=position,
            )
        except DecodeError as error:
            raise _broken(row, index) from error


@dataclass(frozen=True)
class EvaluationSamples(Dataset):
    """Every `world_size`-th row from `rank` on: the image resized to cover the crop, the labels at their own size."""

    split: datasets.Dataset
    crop_size: tuple[int, int]
    rank: int
    world_size: int

    def __len__(self) -> int:
        return len(range(self.rank, len(self.split), self.world_size))

    def __getitem__(self, item: int) -> dict:
        index = range(self.rank, len(self.split), self.world_size)[item]
        row = self.split[index]
        try:
            image, labels = decode_image(row["image"]["bytes"]), decode_annotation(row["annotation"]["bytes"])
            image = resize_to_cover(image, self.crop_size)
        except DecodeError as error:
            raise _broken(row, index) from error
        except ModelError as error:
            raise SampleError(f"{_name(row, index)}: {error}") from error
        return {"index": index, "pixel_values": image, "labels": labels}


def training_loader(
    split: datasets.Dataset,
    *,
    crop_size: tuple[int, int],
    seed: int,
    steps: int,
    start_step: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    num_workers: int,
) -> DataLoader:
    """The micro batches of process `rank` for the steps [start_step, steps), accumulation after accumulation.

    Each is the stack of `micro_batch_size` samples of `benchmark.transforms.training_sample`; micro_batch_size divides
    global_batch_size / world_size. Iterating raises UserError, naming the row, where one cannot be decoded.
    """
    batches = MicroBatches(start_step, steps, global_batch_size, micro_batch_size, rank, world_size)
    return _loader(TrainingSamples(split, crop_size, seed), num_workers, batch_sampler=batches)


def evaluation_loader(
    split: datasets.Dataset, *, crop_size: tuple[int, int], rank: int, world_size: int, num_workers: int
) -> DataLoader:
    """The images of process `rank`, one an item: index, an int; pixel_values uint8 (3, h', w'); labels uint8 (H, W).

    Over all ranks each image comes once. Iterating raises UserError, naming the row, where one cannot be decoded.
    """
    return _loader(EvaluationSamples(split, crop_size, rank, world_size), num_workers, batch_size=None)


def _loader(samples: Dataset, num_workers: int, **batching) -> DataLoader:
    return DataLoader(
        samples,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=outlive_signals,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # a loader draws its workers' seeds; not from the state that the model draws from
        **batching,
    )


def _name(row: dict, index: int) -> str:
    return row["image"]["path"] or f"row {index}"


def _broken(row: dict, index: int) -> SampleError:
    return SampleError(
        f"The image or annotation of {_name(row, index)} cannot be decoded: "
        "delete the prepared dataset and prepare it again from a sound archive."
    )
