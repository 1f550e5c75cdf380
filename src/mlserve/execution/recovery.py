"""
Which exceptions mean that memory ran out, and giving back what can be given back then.

Knows torch by its names only: the core imports no ML framework.
"""

import gc
import sys
import traceback

__all__ = ["free_memory", "is_out_of_memory", "let_go"]

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


def is_out_of_memory(error: BaseException) -> bool:
    """
    Say whether an exception means that there was not enough memory, on the host or on a device.

    By class where there is one (`MemoryError`, `torch.OutOfMemoryError`), else by the messages of
    the `RuntimeError`s that allocators are known to raise.
    """
    if any(cls.__name__ in _NAMES for cls in type(error).__mro__):
        return True
    if not isinstance(error, RuntimeError):
        return False
    try:
        message = str(error).lower()
    except BaseException:  # noqa: BLE001 - it is the user's, and this is where errors end
        return False
    return any(text in message for text in _MESSAGES)


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
    """Collect garbage, then give the device's cached blocks back. In the replica's thread."""
    gc.collect()
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
