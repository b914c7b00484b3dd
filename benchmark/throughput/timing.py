"""Times that can be compared on a busy machine: in turns, the clock beside CPU time, medians and spread."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

MATRIX_SIZE = {"cpu": 1536}  # of the product that measures a device's rate; elsewhere:
LARGE_MATRIX_SIZE = 8192


class Timing(NamedTuple):
    """How long a part took, round by round, in seconds: on the clock, and of this process on all cores."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median on the clock."""
        return float(np.median(self.wall))

    @property
    def cpu_seconds(self) -> float:
        """The median of this process's CPU time."""
        return float(np.median(self.cpu))

    @property
    def spread(self) -> float:
        """From the first to the third quartile on the clock, as a share of the median."""
        return float(np.subtract(*np.quantile(self.wall, [0.75, 0.25])) / self.seconds)


def now(device: torch.device) -> float:
    """Seconds, once the device has done all of its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors took on the GPU since the last call; None on a CPU, which keeps what is freed."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def power(device: torch.device) -> float | None:
    """Watts that the GPU draws now, None where there is none or NVIDIA's library for Python (nvidia-ml-py) is not."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # the library is not there, or the driver does not tell
        return None


def time_in_turns(parts: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Call each part once a round, so that what else the machine does slows all of them alike; without a warm-up."""
    wall: dict[str, list[float]] = {name: [] for name in parts}
    cpu: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            start, busy = now(device), time.process_time()
            part()
            wall[name].append(now(device) - start)
            cpu[name].append(time.process_time() - busy)
    return {name: Timing(tuple(wall[name]), tuple(cpu[name])) for name in parts}


def matrix_product(device: torch.device, precision: str) -> tuple[Callable[[], object], float]:
    """A product of two square matrices, whose rate is the most that a device reaches, and its number of operations.

    Args:
        precision: fp32, bf16 or fp16.
    """
    size = MATRIX_SIZE.get(device.type, LARGE_MATRIX_SIZE)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right  # which sets up the library
    return lambda: left @ right, 2.0 * size**3
