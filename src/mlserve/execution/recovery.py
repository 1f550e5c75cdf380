"""
Which exceptions mean that memory ran out or a device broke, and giving back what can be given back.

Knows torch by its names only: the core imports no ML framework.
"""

import gc
import math
import re
import sys
import time
import traceback
from collections.abc import Callable

__all__ = ["Collector", "free_memory", "is_device_broken", "is_out_of_memory", "let_go"]

_REST = 9  # times as long as it took: a tenth of the time at most
_NAMES = frozenset({"OutOfMemoryError", "_ArrayMemoryError", "MemoryError"})
_MESSAGES = (
    "cuda error: out of memory",
    "cuda out of memory",
    "mps backend out of memory",
    "hip out of memory",
    "defaultcpuallocator: not enough memory",
    "defaultcpuallocator: can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "failed to allocate memory",
    "nvml_success == r internal assert failed",
)
_BROKEN_DEVICE = re.compile(
    r"\b(?:cuda|hip) error\b|device-side assert|illegal memory access|unspecified launch failure"
    r"|misaligned address|uncorrectable ecc"
)


def is_out_of_memory(error: BaseException) -> bool:
    """
    Say whether an exception means that there was not enough memory, on the host or on a device.

    By class where there is one (`MemoryError`, `torch.OutOfMemoryError`), else by the messages of
    the `RuntimeError`s that allocators are known to raise.
    """
    if any(cls.__name__ in _NAMES for cls in type(error).__mro__):
        return True
    message = _runtime_message(error)
    return any(text in message for text in _MESSAGES)


def is_device_broken(error: BaseException) -> bool:
    """
    Say whether an exception means that this process can use its device no longer.

    After a failed assertion or a bad access in a kernel every later call of the process fails,
    whatever it asks for; only another process can use the device again. Every other "CUDA error"
    counts as well, though a few only refuse one call; lack of memory never does. By class
    (`torch.AcceleratorError`), else by the messages of `RuntimeError`s.

    Source:
        https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html, `cudaError`: "The
        process must be terminated and relaunched"; https://github.com/pytorch/pytorch/issues/17425.
    """
    if is_out_of_memory(error):
        return False
    if any(cls.__name__ == "AcceleratorError" for cls in type(error).__mro__):
        return True
    return _BROKEN_DEVICE.search(_runtime_message(error)) is not None


def _runtime_message(error: BaseException) -> str:
    """Give the message of a `RuntimeError` in lower case; nothing for other exceptions."""
    if not isinstance(error, RuntimeError):
        return ""
    try:
        return str(error).lower()
    except BaseException:  # noqa: BLE001 - it is the user's, and this is where errors end
        return ""


def let_go(error: BaseException) -> None:
    """
    Empty the frames that an exception came through: they hold the tensors that were too many.

    Its traceback can still be printed.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def free_memory() -> None:
    """
    Collect garbage, then give the device's cached blocks back. In the replica's thread.

    Nothing is collected soon after the last time: it holds up the event loop, and in a process
    with much in memory a row of failing batches would stop the server.
    """
    _collector.collect()
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()


class Collector:
    """
    Collects garbage for a small share of the time only.

    Args:
        collect: Does it.
        clock: Gives monotonic seconds.
    """

    def __init__(self, collect: Callable[[], object], clock: Callable[[], float]) -> None:
        self._collect = collect
        self._clock = clock
        self._not_before = -math.inf

    def collect(self) -> None:
        """Collect, unless that was done so lately that it would take more than its share."""
        started = self._clock()
        if started < self._not_before:
            return
        self._collect()
        ended = self._clock()
        self._not_before = ended + (ended - started) * _REST


_collector = Collector(gc.collect, time.monotonic)
