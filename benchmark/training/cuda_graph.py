"""Kernels that the host launches together: a model's passes, captured once and replayed in every micro batch."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmark.models.modeling import SegmentationModel


def capture_passes(model: SegmentationModel, batch_size: int, accelerator: Accelerator) -> None:
    """From now on, `model.predict` and its backward pass are CUDA graphs while the model trains.

    The loss stays outside, because Mask2Former's waits for the host. Every backward pass writes its gradients to the
    same memory: where a step has several micro batches, parameters need gradients of their own, to which it adds.

    Args:
        model: unwrapped, on its device, compiled where it is to be; its head is `capturable`.
        batch_size: of every micro batch.
    """
    eager, device = model.predict, accelerator.device
    pixels = torch.zeros(batch_size, 3, *model.config.crop_size, device=device)
    positions = torch.arange(batch_size, device=device)
    # Captured on a stream of its own, where its gradients also arrive; PyTorch orders the streams.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    with accelerator.autocast(), torch.random.fork_rng([torch.cuda.current_device()]):
        captured = torch.cuda.make_graphed_callables(_Predictor(model), (pixels, positions), allow_unused_input=True)

    def predict(pixel_values: Tensor, positions: Tensor | None = None):
        return (captured if model.training else eager)(pixel_values, positions)

    model.predict = predict  # type: ignore[method-assign]


class _Predictor(nn.Module):
    """`model.predict` as a module of its own, because a module's hooks would be captured with it."""

    def __init__(self, model: SegmentationModel):
        super().__init__()
        self.encoder, self.head = model.encoder, model.head
        self.predict = model.predict

    def forward(self, pixel_values: Tensor, positions: Tensor):
        return self.predict(pixel_values, positions)
