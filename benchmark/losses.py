"""The losses of a run's steps: kept on the device, and brought to the host, and looked at, when somebody asks."""

import math

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor

from benchmark.data import sample_index
from benchmark.errors import UserError


class Losses:
    """The losses of the steps since the last `collect`.

    They stay on the device until then, so that a step does not wait for the host.
    """

    def __init__(self, accelerator: Accelerator, split: datasets.Dataset | None, global_batch_size: int, seed: int):
        self.accelerator, self.split = accelerator, split
        self.global_batch_size, self.seed = global_batch_size, seed
        self.on_device: list[Tensor] = []

    def add(self, micro_batches: list[Tensor]) -> None:
        """A step's loss on this process, from those of its micro batches, which are of one size."""
        self.on_device.append(torch.stack(micro_batches).mean())

    def collect(self, step: int) -> list[float]:
        """The losses of the steps up to `step` that were added since the last call. Every process calls it.

        Each is averaged over the processes before anybody averages it over steps, so that a line of metrics does not
        depend on when the losses were collected. Raises UserError where one is not finite, naming step and images.
        """
        if not self.on_device:
            return []
        gathered = self.accelerator.gather(torch.stack(self.on_device)).view(-1, len(self.on_device))
        self.on_device.clear()
        losses = gathered.cpu().double().mean(dim=0).tolist()
        for number, loss in enumerate(losses, start=step - len(losses) + 1):
            if not math.isfinite(loss):
                raise UserError(
                    f"The loss of step {number} is {loss}: lower optim.lr, take train.precision fp32, or look at the "
                    f"step's images ({', '.join(self._images(number))})."
                )
        return losses

    def _images(self, step: int) -> list[str]:
        """The images of a step, by their path or by their row in the prepared dataset."""
        positions = range((step - 1) * self.global_batch_size, step * self.global_batch_size)
        rows = [sample_index(position, len(self.split), self.seed) for position in positions]
        return [self.split[row]["image"]["path"] or f"row {row}" for row in rows]
