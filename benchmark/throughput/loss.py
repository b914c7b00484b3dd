"""`python -m benchmark throughput loss`: our Mask2Former loss beside transformers' own, called layer by layer.

Both are timed forward and backward, from what the decoder puts out (class logits, mask embeddings, mask features) to
the gradients of it, at the sizes of one step on ADE20K: 16 images, 100 queries, 10 layers, 32x32 logits, 9 classes an
image, 12,544 points. Rounds alternate between the two; the medians count.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from benchmark.models.mask2former_loss import Mask2FormerPredictions, mask2former_loss
from benchmark.throughput.timing import time_in_turns

BATCH_SIZE, NUM_LAYERS, NUM_QUERIES, NUM_LABELS, HIDDEN_SIZE = 16, 10, 100, 150, 256
GRID_SIZE, CROP_SIZE, CLASSES_PER_IMAGE = (32, 32), 512, 9
OURS, REFERENCE = "ours, all layers together", "transformers, layer by layer"


def measure(rounds: int = 5) -> dict[str, Any]:
    """Time both losses on this machine's device.

    Returns `losses`: by name, seconds and cpu_seconds (medians), operations and host_copies; operations and host_copies
    of ours; speedup, by CPU time on a CPU, because the clock counts what else the machine does; and device.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictions, labels = example_step(device)
    masks, classes = binary_masks(labels)
    steps = {
        REFERENCE: lambda: reference_loss(predictions, masks, classes).backward(),
        OURS: lambda: mask2former_loss(predictions, labels, seed=0)[0].mean().backward(),
    }
    counts = {name: count_operations(step) for name, step in steps.items()}  # and warms up
    timings = time_in_turns(steps, rounds, device)
    losses = {
        name: {
            "seconds": timings[name].seconds,
            "cpu_seconds": timings[name].cpu_seconds,
            "operations": operations,
            "host_copies": host_copies,
        }
        for name, (operations, host_copies) in counts.items()
    }
    clock = "cpu_seconds" if device.type == "cpu" else "seconds"
    return {
        "losses": losses,
        "operations": losses[OURS]["operations"],
        "host_copies": losses[OURS]["host_copies"],
        "speedup": round(losses[REFERENCE][clock] / losses[OURS][clock], 2),
        "device": f"{device} ({torch.get_num_threads()} thread(s))",
    }


def example_step(device: torch.device) -> tuple[Mask2FormerPredictions, Tensor]:
    """Random predictions, with gradients to come, and label maps (B, H, W) of `CLASSES_PER_IMAGE` classes each."""
    generator = torch.Generator().manual_seed(0)
    predictions = Mask2FormerPredictions(
        torch.randn(NUM_LAYERS, BATCH_SIZE, NUM_QUERIES, NUM_LABELS + 1, generator=generator),
        torch.randn(NUM_LAYERS, BATCH_SIZE, NUM_QUERIES, HIDDEN_SIZE, generator=generator) / HIDDEN_SIZE**0.5,
        torch.randn(BATCH_SIZE, HIDDEN_SIZE, *GRID_SIZE, generator=generator),
    )
    predictions = Mask2FormerPredictions(*(tensor.to(device).requires_grad_() for tensor in predictions))
    classes = torch.rand(BATCH_SIZE, NUM_LABELS, generator=generator).topk(CLASSES_PER_IMAGE).indices
    patches = torch.arange(64) % CLASSES_PER_IMAGE  # 8 x 8 patches, so that every class occurs
    patches = patches[torch.randperm(64, generator=generator)]
    labels = classes[:, patches].view(BATCH_SIZE, 8, 8)
    patch_size = CROP_SIZE // 8
    return predictions, labels.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2).to(device)


def binary_masks(labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """For each image its masks (T, H, W), fp32, and their classes (T,), as transformers' loss wants them."""
    classes = [label_map.unique() for label_map in labels]
    masks = [(label_map == own[:, None, None]).float() for label_map, own in zip(labels, classes, strict=True)]
    return masks, classes


def reference_loss(predictions: Mask2FormerPredictions, masks: list[Tensor], classes: list[Tensor]) -> Tensor:
    """transformers' Mask2Former loss of the whole batch, called once a layer."""
    criterion = Mask2FormerLoss(Mask2FormerConfig(num_labels=NUM_LABELS), {}).to(predictions.class_logits.device)
    total = 0
    for layer, class_logits in enumerate(predictions.class_logits):
        losses = criterion(predictions.mask_logits(layer), class_logits, masks, classes)
        total = total + 2 * losses["loss_cross_entropy"] + 5 * losses["loss_mask"] + 5 * losses["loss_dice"]
    return total


def count_operations(step: Callable[[], None]) -> tuple[int, int]:
    """How many operations PyTorch dispatches in `step`, views included, and how many copies to the host it asks for.

    Copies are counted by the calls that make one on a GPU, so that a CPU counts the same. A backward pass is counted
    where it runs in the calling thread: on a CPU.
    """
    with _HostCopies() as copies, _Operations() as operations:
        step()
    return operations.count, copies.count


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class _HostCopies(TorchFunctionMode):
    count = 0
    calls = (
        *(torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.unique),
        *(torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__),
        *(torch.Tensor.masked_select, torch.masked_select, torch.nonzero, torch.unique, torch.equal),
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in self.calls
        return func(*args, **(kwargs or {}))
