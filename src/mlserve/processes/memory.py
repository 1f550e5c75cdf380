"""How much memory this process takes, and memory that it shares with others."""

import os
import resource
import sys
import tempfile
from pathlib import Path

__all__ = ["resident_bytes", "shared_memory"]

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Give the resident memory of this process; where the system does not say, its peak."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def shared_memory(name: str, n_bytes: int) -> int:
    """
    Make memory, full of zeros, that no file system knows of; it is gone with its last process.

    Returns:
        An open file of it.

    Raises:
        OSError: If there is no further descriptor.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name)
    else:  # a file that has no name any more
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, n_bytes)
    return fd
