"""The losses of a run's steps: kept on the device, and moved to the host, and checked, when they are needed."""

import math

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor

from benchmark.data.loaders import sample_name
from benchmark.data.step_plan import StepPlan, sample_index
from benchmark.errors import UserError


class Losses:
    """The losses of the steps since the last `collect`.

    They stay on the device until then, so that a step does not wait for the host.

    Args:
        split: the training samples, whose names an error gives.
    """

    def __init__(self, accelerator: Accelerator, split: datasets.Dataset, plan: StepPlan, seed: int):
        self.accelerator, self.split, self.plan, self.seed = accelerator, split, plan, seed
        self.names: list[str] = []
        self.on_device: list[Tensor] = []

    def add(self, losses: dict[str, Tensor]) -> None:
        """A step's loss and its parts on this process, as `Step` returns them."""
        self.names = list(losses)
        self.on_device.append(torch.stack(list(losses.values())))

    def collect(self, step: int) -> list[dict[str, float]]:
        """The losses of the steps up to `step` that were added since the last call. Every process calls it.

        Each is averaged over the processes before it is averaged over steps, so that a line of metrics does not
        depend on when the losses were collected.

        Raises:
            UserError: one is not finite; the sentence names step and images.
        """
        if not self.on_device:
            return []
        shape = (-1, len(self.on_device), len(self.names))  # processes, steps, names
        gathered = self.accelerator.gather(torch.stack(self.on_device)).view(shape)
        self.on_device.clear()
        losses = gathered.cpu().double().mean(dim=0).tolist()
        for number, values in enumerate(losses, start=step - len(losses) + 1):
            if not math.isfinite(values[0]):
                raise UserError(
                    f"The loss of step {number} is {values[0]}: lower optim.lr, set train.precision to fp32, or look "
                    f"at the step's images ({', '.join(self._images(number))})."
                )
        return [dict(zip(self.names, values, strict=True)) for values in losses]

    def _images(self, step: int) -> list[str]:
        """The images of a step, by their path or by their row in the prepared dataset."""
        rows = [sample_index(position, len(self.split), self.seed) for position in self.plan.positions(step - 1)]
        return [sample_name(self.split[row], row) for row in rows]
