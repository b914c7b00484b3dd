"""How many images a process forwards at once: what the recipe says, or the most that fits into memory."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, release_memory
from accelerate.utils.memory import should_reduce_batch_size

from benchmark.data import micro_batch_size
from benchmark.errors import UserError
from benchmark.models.modeling import SegmentationModel
from benchmark.recipe import Recipe

MOST_UNPROBED = 16  # images at once under train.micro_batch_size auto on a CPU, whose memory cannot be tried out


def share_of_step(recipe: Recipe, world_size: int, most: int | None = None) -> tuple[int, int]:
    """The micro batch, of at most `most` images or what the recipe says, and the accumulation of each process."""
    asked = recipe.train.micro_batch_size
    return micro_batch_size(
        recipe.train.global_batch_size, world_size, most or (MOST_UNPROBED if asked == "auto" else asked)
    )


def settle_micro_batch(recipe: Recipe, model: SegmentationModel, accelerator: Accelerator) -> int:
    """The micro batch of each process, the largest that fits where the recipe says auto; sets the accumulation.

    Args:
        model: on its device, and not yet prepared: a trial must not wait for another process's gradients.
    """
    processes, most = accelerator.num_processes, None
    if recipe.train.micro_batch_size == "auto" and accelerator.device.type != "cpu":
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError("train.micro_batch_size auto cannot try out a model in shards: set it to a number.")
        share = recipe.train.global_batch_size // processes
        most = largest_micro_batch(model, [n for n in range(share, 0, -1) if share % n == 0], accelerator)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)  # results tell what the run needs, not its trials
    micro, accumulation = share_of_step(recipe, processes, most)
    accelerator.gradient_accumulation_steps = accumulation
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=micro,
            gradient_accumulation_steps=accumulation,
            gradient_clipping=0.0,  # accelerate would clip at a norm of 1
        )
    return micro


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
    """Whether a forward and a backward of `size` images, beside the optimizer's moments, fit into memory."""
    height, width = model.config.crop_size
    devices = [accelerator.device] if accelerator.device.type != "cpu" else []
    try:
        with torch.random.fork_rng(devices, device_type=accelerator.device.type), accelerator.autocast():
            moments = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
            pixels = torch.zeros(size, 3, height, width, device=accelerator.device)
            # Every class in every image, for a loss that works class by class.
            labels = torch.arange(height * width, device=accelerator.device) % model.config.num_labels
            labels = labels.view(1, height, width).expand(size, -1, -1)
            model(pixel_values=pixels, labels=labels, positions=labels[:, 0, 0]).loss.backward()
            del moments
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True


@contextmanager
def memory_for(what: str, advice: str | None) -> Iterator[None]:
    """Turn the end of memory in the block into a sentence: `what` does not fit, and `advice`."""
    try:
        yield
    except RuntimeError as error:
        if should_reduce_batch_size(error):
            raise UserError(_does_not_fit(what, advice)) from error
        raise


def memory_for_step(recipe: Recipe, world_size: int, micro: int) -> AbstractContextManager:
    """`memory_for` a training step; the advice is the next smaller micro batch."""
    smaller = share_of_step(recipe, world_size, micro - 1)[0] if micro > 1 else None
    return memory_for(f"A micro batch of {micro} images", smaller and f"set train.micro_batch_size to {smaller}")


def _does_not_fit(what: str, advice: str | None) -> str:
    advice = advice or "lower data.crop_size, take a smaller encoder, or shard with accelerate_configs/fsdp.yaml"
    return f"{what} does not fit into the device's memory: {advice}."
