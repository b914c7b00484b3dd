"""Which samples a step takes, and how processes and micro batches share them.

Training samples are one endless stream, one seeded permutation of the dataset after another. Step t, counted from 0,
takes the positions [t * G, (t + 1) * G) of it, where G is the global batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmark.errors import UserError


@dataclass(frozen=True)
class StepPlan:
    """How the images of one optimizer step are split: `world_size` processes x `accumulation` micro batches each."""

    global_batch_size: int
    world_size: int
    micro_batch_size: int

    @classmethod
    def fit(cls, global_batch_size: int, world_size: int, max_micro_batch_size: int) -> "StepPlan":
        """The plan with the largest micro batch that divides each process's share and is not above the maximum.

        Raises:
            UserError: the processes cannot share the batch evenly.
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
        micro = max(size for size in range(1, min(max_micro_batch_size, share) + 1) if share % size == 0)
        return cls(int(global_batch_size), world_size, micro)

    @property
    def share(self) -> int:
        """Images of a step that one process takes."""
        return self.global_batch_size // self.world_size

    @property
    def accumulation(self) -> int:
        """Micro batches of a step that one process takes, one after another."""
        return self.share // self.micro_batch_size

    def smaller(self) -> "StepPlan | None":
        """The plan with the next smaller micro batch; None where it is one image."""
        if self.micro_batch_size == 1:
            return None
        return self.fit(self.global_batch_size, self.world_size, self.micro_batch_size - 1)

    def positions(self, step: int) -> range:
        """The stream's positions that `step`, counted from 0, takes over all processes."""
        return range(step * self.global_batch_size, (step + 1) * self.global_batch_size)

    def micro_batches(self, step: int, rank: int) -> list[range]:
        """The positions of each micro batch of process `rank` in `step`, counted from 0."""
        first = step * self.global_batch_size + rank * self.share
        size = self.micro_batch_size
        return [range(start, start + size) for start in range(first, first + self.share, size)]

    def __str__(self) -> str:
        return (
            f"a step: {self.world_size} process(es) x {self.accumulation} accumulated x micro batch "
            f"{self.micro_batch_size} = {self.global_batch_size}"
        )


@dataclass(frozen=True)
class MicroBatches:
    """The micro batches of one process for the steps [start_step, steps): a DataLoader's batch sampler."""

    plan: StepPlan
    rank: int
    start_step: int
    steps: int

    def __iter__(self) -> Iterator[range]:
        for step in range(self.start_step, self.steps):
            yield from self.plan.micro_batches(step, self.rank)


def sample_index(position: int, num_samples: int, seed: int) -> int:
    """Which of `num_samples` rows is at `position` of the training stream."""
    epoch, place = divmod(position, num_samples)
    return int(_permutation(num_samples, seed, epoch)[place])


@lru_cache(maxsize=2)  # workers run ahead across the border of two epochs
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    # A spawn key, because [seed, epoch] would give the bits that the sample at position `epoch` draws from.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(num_samples)
