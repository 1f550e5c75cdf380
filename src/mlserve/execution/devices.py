"""Which devices there are, found without importing any ML framework."""

import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from glob import glob

from mlserve.settings import Replicas

__all__ = ["available_cores", "device_of", "find_devices"]


def available_cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_devices(
    environment: Mapping[str, str] = os.environ,
    device_files: Callable[[], Sequence[str]] = lambda: glob("/dev/nvidia[0-9]*"),
) -> list[str]:
    """
    List the devices that replicas should use: NVIDIA's where torch can use them, else the CPU.

    Honours `CUDA_VISIBLE_DEVICES`, within which devices are numbered from 0.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not _torch_sees_gpus():
        return ["cpu"]
    n_devices = len(device_files())
    if visible is not None:
        n_devices = min(n_devices, len([part for part in visible.split(",") if _is_device(part)]))
    return [f"cuda:{number}" for number in range(n_devices)] or ["cpu"]


def device_of(replica: int, options: Replicas) -> str:
    """Give the device of a replica's number: the devices in turn."""
    devices = find_devices() if options.devices == "auto" else options.devices
    return devices[replica % len(devices)]


def _torch_sees_gpus() -> bool:
    """Whether torch is installed, and is not a build for CPUs only."""
    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def _is_device(part: str) -> bool:
    return bool(part.strip()) and part.strip() != "-1"
