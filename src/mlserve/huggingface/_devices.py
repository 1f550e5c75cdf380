"""What an encoder runs with on a device: dtype, batching and replicas, and the way to it."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from mlserve.handler import Context
from mlserve.settings import Batching, Replicas

__all__ = [
    "Dtype",
    "encoder_batching",
    "encoder_replicas",
    "image_batching",
    "padded_budget",
    "place",
    "resolve_dtype",
    "to_device",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

DTYPES: tuple[str, ...] = get_args(Dtype)

MAX_CPU_REPLICAS = 4
# The first generation of NVIDIA devices that computes in bfloat16 instead of emulating it.
FIRST_BF16_CAPABILITY = (8, 0)


def padded_budget(n_cuda: int) -> int:
    """
    Choose how many padded tokens a batch has at most; see `encoder_batching`.

    On one core, all-MiniLM-L6-v2 does no more per second with larger batches than with one of 512
    tokens, which is done sooner, and for which fewer texts of another length are needed.
    """
    return 16_384 if n_cuda else 512


def encoder_batching(n_cuda: int) -> Batching:
    """
    Choose how encoders batch by default.

    Padding is real work on a CPU, which has no idle units to hide it: a batch is therefore bounded
    by its padded tokens, and by more of them where a device is wide enough to be kept busy.

    Args:
        n_cuda: How many CUDA devices there are.
    """
    return Batching(max_size=64, max_cost=padded_budget(n_cuda), padded=True)


def image_batching(n_cuda: int) -> Batching:
    """
    Choose how models of images batch by default: by number, since images have one size.

    On a CPU one image keeps a core busy, so larger batches would only make the first ones wait.

    Args:
        n_cuda: How many CUDA devices there are.
    """
    return Batching(max_size=64 if n_cuda else 8)


def encoder_replicas(n_cuda: int, n_cores: int) -> Replicas:
    """
    Choose how many replicas an encoder has by default.

    On CPU, replicas of one thread each do more than one replica with as many threads, since a
    short text does not divide well; each holds its own copy of the weights, hence the cap.

    Args:
        n_cuda: How many CUDA devices there are; with one or more, one replica runs on the first.
        n_cores: How many CPU cores may be used.
    """
    if n_cuda:
        return Replicas(count=1, devices=("cuda:0",))
    count = min(max(n_cores, 1), MAX_CPU_REPLICAS)
    return Replicas(count=count, devices=("cpu",), threads_per_replica=1)


def resolve_dtype(
    dtype: str, device_type: str, capability: tuple[int, int] | None = None
) -> torch.dtype:
    """
    Choose the dtype of the weights.

    Args:
        dtype: One of `Dtype`; `"auto"` is bfloat16 on a CUDA device that computes in it, else
            float32.
        device_type: Such as `cpu` or `cuda`.
        capability: The CUDA device's compute capability; `None` elsewhere.
    """
    if dtype == "auto":
        has_bf16 = capability is not None and capability >= FIRST_BF16_CAPABILITY
        return torch.bfloat16 if device_type == "cuda" and has_bf16 else torch.float32
    return {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }[dtype]


def place(context: Context, dtype: str) -> tuple[torch.device, torch.dtype]:
    """
    Choose device and dtype of a replica. Runs in the replica's thread.

    On CPU, sets torch's compute threads to `context.threads` where given; torch keeps that number
    for the whole process.

    Args:
        context: The replica's.
        dtype: One of `Dtype`.
    """
    device = torch.device(context.device)
    if device.type == "cpu" and context.threads is not None:
        torch.set_num_threads(context.threads)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return device, resolve_dtype(dtype, device.type, capability)


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """
    Copy tensors to the device; on CUDA from page-locked memory, so that no copy is waited for.

    What is queued on the device after the copies still sees them done.
    """
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    return {
        name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()
    }
