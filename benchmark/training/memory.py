"""How many images a process forwards at once: what the recipe says, or as many as fit into memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, release_memory
from accelerate.utils.memory import should_reduce_batch_size

from benchmark.data.step_plan import StepPlan
from benchmark.errors import ProcessError, UserError
from benchmark.models.modeling import SegmentationModel

# Images at once under train.micro_batch_size auto on a CPU, where a step that takes too much memory ends the process.
MAX_UNTRIED = 16


def plan_without_trial(global_batch_size: int, world_size: int, micro_batch_size: int | str) -> StepPlan:
    """The plan of a step, without trying how many images fit into memory where `micro_batch_size` is "auto"."""
    most = MAX_UNTRIED if micro_batch_size == "auto" else int(micro_batch_size)
    return StepPlan.fit(global_batch_size, world_size, most)


def plan_steps(
    global_batch_size: int, micro_batch_size: int | str, model: SegmentationModel, accelerator: Accelerator
) -> StepPlan:
    """The plan of a step, with the largest micro batch that fits into memory where `micro_batch_size` is "auto".

    It also tells accelerate the accumulation.

    Args:
        model: on its device, and not prepared yet: a trial must not wait for another process's gradients.
    """
    plan = plan_without_trial(global_batch_size, accelerator.num_processes, micro_batch_size)
    if micro_batch_size == "auto" and accelerator.device.type != "cpu":
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError("train.micro_batch_size auto cannot try a sharded model: set it to a number.")
        sizes = [size for size in range(plan.share, 0, -1) if plan.share % size == 0]
        most = largest_micro_batch(model, sizes, accelerator)
        plan = StepPlan.fit(global_batch_size, accelerator.num_processes, most)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)  # results say what the run needs, not its trials
    accelerator.gradient_accumulation_steps = plan.accumulation
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=plan.micro_batch_size,
            gradient_accumulation_steps=plan.accumulation,
            gradient_clipping=0.0,  # accelerate would clip at a norm of 1
        )
    return plan


def largest_micro_batch(model: SegmentationModel, sizes: Sequence[int], accelerator: Accelerator) -> int:
    """The first of `sizes`, which fall, with which every process has memory for a step.

    Weights, gradients and random numbers are left as they were. Raises UserError where none fits.
    """
    for size in sizes:
        fits = _step_fits(model, size, accelerator)
        release_memory()
        if accelerator.gather(torch.tensor([fits], device=accelerator.device)).all():
            return size
        torch.compiler.reset()  # or blocks compiled for one size would be made to serve every size
    raise UserError(_does_not_fit("A micro batch of one image", None))


def _step_fits(model: SegmentationModel, size: int, accelerator: Accelerator) -> bool:
    """Whether a forward and a backward pass of `size` images, beside the optimizer's moments, fit into memory."""
    height, width = model.config.crop_size
    devices = [accelerator.device] if accelerator.device.type != "cpu" else []
    try:
        with torch.random.fork_rng(devices, device_type=accelerator.device.type), accelerator.autocast():
            # Two moments, and the gradients that captured passes hold apart.
            others = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(3)]
            pixels = torch.zeros(size, 3, height, width, device=accelerator.device)
            # As many classes in every image as a loss that works class by class can take.
            classes = model.config.num_labels
            if hasattr(model.head, "queries"):
                classes = min(classes, len(model.head.queries))
            labels = torch.arange(height * width, device=accelerator.device) % classes
            labels = labels.view(1, height, width).expand(size, -1, -1)
            model(pixel_values=pixels, labels=labels, positions=labels[:, 0, 0]).loss.backward()
            del others
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True


def memory_advice(plan: StepPlan) -> tuple[str, str | None]:
    """What does not fit, and what helps, where a step of the plan runs out of memory."""
    smaller = plan.smaller()
    advice = f"set train.micro_batch_size to {smaller.micro_batch_size}" if smaller else None
    return f"A micro batch of {plan.micro_batch_size} images", advice


@contextmanager
def explain_out_of_memory(what: str, advice: str | None) -> Iterator[None]:
    """Turn running out of memory in the block into a sentence: `what` does not fit, and `advice`."""
    try:
        yield
    except RuntimeError as error:
        if should_reduce_batch_size(error):
            raise ProcessError(_does_not_fit(what, advice)) from error
        raise


def _does_not_fit(what: str, advice: str | None) -> str:
    advice = advice or "lower data.crop_size, use a smaller encoder, or shard with accelerate_configs/fsdp.yaml"
    return f"{what} does not fit into the device's memory: {advice}."
