"""From a prepared dataset to batches: the loaders of training and of evaluation.

Each training sample is a pure function of (seed, position): not of workers, processes, or what ran before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmark.data.step_plan import MicroBatches, StepPlan, sample_index
from benchmark.data.transforms import DecodeError, decode_annotation, decode_image, training_sample
from benchmark.data.workers import blocked_signals, outlive_signals
from benchmark.errors import ProcessError
from benchmark.models.errors import ModelError
from benchmark.models.windows import resize_to_cover
from benchmark.recipe.schema import Augment
from data_scripts.images import checksum


class SampleError(ProcessError):
    """A row of the prepared dataset that cannot be used."""


@dataclass(frozen=True)
class TrainingSamples(Dataset):
    """The training stream by position; rows are {"image", "annotation"}, each {"bytes", "path"}."""

    split: datasets.Dataset
    crop_size: tuple[int, int]
    seed: int
    augment: Augment = Augment()

    def __getitem__(self, position: int) -> dict | SampleError:
        index = sample_index(position, len(self.split), self.seed)
        row = self.split[index]
        try:
            verify(row)
            return training_sample(
                row["image"]["bytes"],
                row["annotation"]["bytes"],
                crop_size=self.crop_size,
                seed=self.seed,
                position=position,
                augment=self.augment,
            )
        except DecodeError as error:
            return _broken(self.split, row, index, error)


@dataclass(frozen=True)
class EvaluationSamples(Dataset):
    """Every `world_size`-th row from `rank` on: the image resized to cover the crop, the labels at their own size."""

    split: datasets.Dataset
    crop_size: tuple[int, int]
    rank: int
    world_size: int

    def __len__(self) -> int:
        return len(range(self.rank, len(self.split), self.world_size))

    def __getitem__(self, item: int) -> dict | SampleError:
        index = range(self.rank, len(self.split), self.world_size)[item]
        row = self.split[index]
        try:
            verify(row)
            image, labels = decode_image(row["image"]["bytes"]), decode_annotation(row["annotation"]["bytes"])
            image = resize_to_cover(image, self.crop_size)
        except DecodeError as error:
            return _broken(self.split, row, index, error)
        except ModelError as error:
            return SampleError(f"{sample_name(row, index)}: {error}")
        return {"index": index, "pixel_values": image, "labels": labels}


def training_loader(
    split: datasets.Dataset,
    *,
    plan: StepPlan,
    rank: int,
    start_step: int,
    steps: int,
    crop_size: tuple[int, int],
    seed: int,
    num_workers: int,
    augment: Augment = Augment(),
) -> Iterator[dict[str, Tensor]]:
    """The micro batches of process `rank` for the steps [start_step, steps), accumulation after accumulation.

    Each is the stack of `plan.micro_batch_size` samples of `benchmark.data.transforms.training_sample`. Iterating
    raises SampleError, naming the row, where one cannot be decoded.
    """
    batches = MicroBatches(plan, rank, start_step, steps)
    samples = TrainingSamples(split, crop_size, seed, augment)
    return _load(samples, num_workers, batch_sampler=batches, collate_fn=_collate)


def evaluation_loader(
    split: datasets.Dataset, *, crop_size: tuple[int, int], rank: int, world_size: int, num_workers: int
) -> Iterator[dict[str, Any]]:
    """The images of process `rank`, one an item: index, an int; pixel_values uint8 (3, h', w'); labels uint8 (H, W).

    Over all ranks each image comes once. Iterating raises SampleError, naming the row, where one cannot be decoded.
    """
    return _load(EvaluationSamples(split, crop_size, rank, world_size), num_workers, batch_size=None)


def copied_ahead(batches: Iterable[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The batches on the device; a GPU copies the next one, from pinned memory, while it works on the one before."""
    if device.type != "cuda":
        yield from ({name: value.to(device) for name, value in batch.items()} for batch in batches)
        return
    stream, ahead = torch.cuda.Stream(device), None
    for batch in chain(batches, [None]):
        if ahead is not None:
            torch.cuda.current_stream(device).wait_stream(stream)
            for value in ahead.values():
                value.record_stream(torch.cuda.current_stream(device))
        ready = ahead
        if batch is not None:
            with torch.cuda.stream(stream):
                ahead = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        if ready is not None:
            yield ready


def _load(samples: Dataset, num_workers: int, **batching) -> Iterator[dict[str, Any]]:
    loader = DataLoader(
        samples,
        num_workers=num_workers,
        worker_init_fn=outlive_signals,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of the workers' seeds: not from the state that the model draws from
        **batching,
    )
    with blocked_signals():
        batches = iter(loader)
    for batch in batches:
        # A worker returns an error as it returns a sample: one that it raises would arrive as a traceback's text.
        if isinstance(batch, SampleError):
            raise batch
        yield batch


def _collate(samples: list[dict | SampleError]) -> dict | SampleError:
    broken = [sample for sample in samples if isinstance(sample, SampleError)]
    return broken[0] if broken else default_collate(samples)


def sample_name(row: dict, index: int) -> str:
    """What a row is called in a sentence: its image's path, or its number in the prepared dataset."""
    return row["image"]["path"] or f"row {index}"


def verify(row: dict) -> None:
    """Raise DecodeError where a row's bytes are not those that were prepared: damaged ones may crash a decoder."""
    if "checksum" in row and row["checksum"] != checksum(row["image"]["bytes"], row["annotation"]["bytes"]):
        raise DecodeError("its checksum differs")


def _broken(split: datasets.Dataset, row: dict, index: int, error: DecodeError) -> SampleError:
    files = getattr(split, "cache_files", None) or [{"filename": "the prepared dataset"}]
    return SampleError(
        f"The image or annotation of {sample_name(row, index)}, row {index} of {Path(files[0]['filename']).parent}, "
        f"cannot be decoded ({error}): remove that folder and run the same command again."
    )
