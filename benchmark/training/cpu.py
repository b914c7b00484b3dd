"""What a process on a CPU does better than PyTorch's defaults: memory, and products of matrices."""

import ctypes
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
FEW_TOKENS = 512  # up to which whole attention matrices are small beside the other activations


def set_up_cpu(precision: str, crop_size: Sequence[int], patch_size: int) -> None:
    """Choose for this process how it keeps memory and, in fp32, how it multiplies matrices.

    Args:
        precision: fp32 or bf16.
        crop_size: (height, width) in pixels; with `patch_size` it says how many tokens an image has.
    """
    keep_freed_memory()
    if precision == "fp32" and _mkl_is_slow():
        multiply_with_onednn(tokens=math.prod(crop_size) // patch_size**2)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc (`man mallopt`).

    By default large tensors' memory is returned to the system, and each of its pages is zeroed again when the next
    tensor is made: a few per cent of a training step and a quarter of what label maps take on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def multiply_with_onednn(tokens: int) -> None:
    """Let oneDNN multiply matrices of fp32, where it does so in fp32.

    PyTorch multiplies with MKL, which does not use AVX-512 on AMD's processors: there oneDNN is twice as fast. PyTorch
    gives fp32 to oneDNN only with permission to round it to bf16, which oneDNN uses on processors with AMX alone (its
    developer guide: "Floating-point math mode"). Because that may change, a product shows whether it rounds, and the
    permission is withdrawn where it does.

    Flash attention makes many small products, at which oneDNN is slow: for few tokens whole matrices take its place.
    """
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    if not _multiplies_exactly():
        matmul.fp32_precision = before
    elif tokens <= FEW_TOKENS:
        torch.backends.cuda.enable_flash_sdp(False)  # a CPU's, too


def _multiplies_exactly() -> bool:
    """Whether products keep numbers that need all bits of fp32; bf16 keeps 8 of their 24, and a pair of bf16 16."""
    numbers = torch.full((256, 256), 1 + 2.0**-23)
    return torch.equal(numbers @ torch.eye(256), numbers)


def _mkl_is_slow() -> bool:
    """Whether this is a processor of AMD with AVX-512."""
    file = Path("/proc/cpuinfo")
    maker = file.read_text() if file.exists() else platform.processor()
    return "AuthenticAMD" in maker and torch.backends.cpu.get_cpu_capability() == "AVX512"
