"""One optimizer step: batches in, losses out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmark.data.color_jitter import color_jitter
from benchmark.data.step_plan import StepPlan
from benchmark.models.modeling import SegmentationModel
from benchmark.models.windows import normalize
from benchmark.reporting.reporter import GRAD_NORM
from benchmark.training.lora import check_adapters, merged_adapters, without_adapters
from benchmark.training.memory import explain_out_of_memory, memory_advice
from benchmark.training.optim import MovingAverage


class Step:
    """A model, its optimizer and its schedule; calling it makes one step.

    Args:
        model: unwrapped, on its device; its blocks may be compiled.
        schedule: sets and returns an optimizer's learning rates for a step, counted from 1.
        steps: of the whole training.
        clip_norm: maximum norm of all gradients together; larger ones are scaled down to it.
        ema_decay: of a moving average of the weights; 0 for none.
        compiled: compile jitter and normalisation, on a GPU.
        keep_gradients: parameters keep theirs, which a step leaves at zero and not at None.

    Attributes:
        model, optimizer: as accelerate prepared them.
        config: the model's configuration.
    """

    def __init__(
        self,
        model: SegmentationModel,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[..., list[float]],
        plan: StepPlan,
        accelerator: Accelerator,
        *,
        steps: int,
        clip_norm: float | None = None,
        ema_decay: float = 0.0,
        compiled: bool = False,
        keep_gradients: bool = False,
    ):
        self.steps, self.clip_norm = steps, clip_norm
        self.average = MovingAverage(model, ema_decay) if ema_decay else None
        self.checked = False  # in the first micro batch, whether every adapter has a gradient
        self.accelerator, self.plan, self.schedule, self.config = accelerator, plan, schedule, model.config
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        on_gpu = accelerator.device.type == "cuda"
        self.augmented = torch.compile(augmented, dynamic=False) if compiled and on_gpu else augmented
        self.keep_gradients = keep_gradients

    def __call__(self, step: int, batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Make `step`, counted from 1, from the next micro batches, which are on the device.

        Returns:
            This process's loss and its parts, and, where it is clipped, the gradients' norm before: scalars on the
            device, because a step does not wait for the host.

        Raises:
            UserError: a micro batch does not fit into memory.
        """
        losses, norm = [], {}
        self.set_rates(step)
        self.anneal((step - 1) / self.steps)
        with explain_out_of_memory(*memory_advice(self.plan)):
            if self.keep_gradients and not self.checked:  # not before, because a checkpoint is loaded without gradients
                for parameter in self.model.parameters():
                    parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            for _ in range(self.plan.accumulation):
                inputs = self.augmented(
                    **next(batches), image_mean=self.config.image_mean, image_std=self.config.image_std
                )
                with self.accelerator.accumulate(self.model):
                    with self.accelerator.autocast():
                        outputs = self.model(**inputs)
                    self.accelerator.backward(outputs.loss)
                    if not self.checked:
                        check_adapters(self.unwrapped_model())
                        self.checked = True
                    if self.clip_norm is not None and self.accelerator.sync_gradients:
                        norm = {GRAD_NORM: self._clip(self.clip_norm)}
                    self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=not self.keep_gradients)
                losses.append({"loss": outputs.loss.detach(), **(outputs.get("loss_parts") or {})})
        if self.average:
            self.average.update()
        return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]} | norm

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """In it the model is as it is evaluated and saved: with the moving average of its weights, where there is one,
        and with its adapters merged into them.
        """
        with self.average.in_place() if self.average else nullcontext(), merged_adapters(self.unwrapped_model()):
            yield

    def saved_weights(self) -> dict[str, Tensor]:
        """The whole weights of the model as it is saved, on the CPU; every process calls it."""
        with self.as_saved():
            return without_adapters(gather_weights(self.accelerator, self.model))

    def _clip(self, most: float) -> Tensor:
        """Scale all gradients down to a common norm of `most`, where it is larger; return what it was."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), most).detach()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def anneal(self, progress: float) -> None:
        """Tell the model which share of its training is over, in 0..1."""
        self.unwrapped_model().anneal(progress)

    def set_rates(self, step: int) -> list[float]:
        """Set the learning rates of `step`, counted from 1, and return them: the head's, then the encoder's."""
        return self.schedule(self.optimizer, step=step)

    def unwrapped_model(self) -> SegmentationModel:
        return self.accelerator.unwrap_model(self.model)

    def fix_gradient_order(self) -> None:
        """Make one backward pass of a loss of zero, whose gradients are dropped.

        DDP sums gradients by buckets, and orders them again after its first backward pass: without this, the first step
        after a resume would sum in another order than the same step of a run that was not interrupted.
        """
        if not isinstance(self.model, DistributedDataParallel):
            return
        labels = torch.zeros(1, *self.config.crop_size, dtype=torch.long, device=self.accelerator.device)
        pixel_values = torch.zeros(1, 3, *self.config.crop_size, device=self.accelerator.device)
        outputs = self.model(pixel_values=pixel_values, labels=labels, positions=labels[:, 0, 0])
        self.accelerator.backward(outputs.loss * 0)
        self.model.zero_grad()


def augmented(
    pixel_values: Tensor,
    labels: Tensor,
    positions: Tensor,
    jitter: Tensor,
    thumbnails: Tensor,
    sizes: Tensor,
    *,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> dict[str, Tensor]:
    """A batch as the training loader makes it, on the device: jittered, normalised, as the model takes it.

    Returns:
        pixel_values (B, 3, H, W) fp32, labels (B, H, W) int64, positions (B,) int64.
    """
    pixels = color_jitter(pixel_values, thumbnails, jitter, sizes)
    return {
        "pixel_values": normalize(pixels, image_mean, image_std),
        "labels": labels.long(),
        "positions": positions,
    }


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something that is done every so many steps, and at the last one, is done after `step`."""
    return step % every == 0 or step == steps


def gather_weights(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """The model's weights, whole and on the CPU, by the names of the unwrapped model; every process calls it."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.get_state_dict(model)
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
