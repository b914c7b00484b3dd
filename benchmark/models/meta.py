"""A model's shapes without memory for its values."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

ONLY_VALUES = {"add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"}


@contextmanager
def without_memory() -> Iterator[None]:
    """What is made inside has shapes and no values, and does not spend time on drawing them.

    On the meta device alone a weight's initialisation still runs, and takes most of the time that a model takes.
    """
    with torch.device("meta"), _WithoutValues():
        yield


class _WithoutValues(TorchFunctionMode):
    """Leaves out what changes the values of a tensor in place and nothing else."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", None) in ONLY_VALUES:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
