"""Which devices there are, found without importing any ML framework."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from glob import glob

from mlserve.settings import Replicas

__all__ = ["device_of", "find_devices"]


def find_devices(
    environment: Mapping[str, str] = os.environ,
    device_files: Callable[[], Sequence[str]] = lambda: glob("/dev/nvidia[0-9]*"),
) -> list[str]:
    """
    List the devices that replicas should use: NVIDIA's where torch can use them, else the CPU.

    Honours `CUDA_VISIBLE_DEVICES`, within which devices are numbered from 0.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if importlib.util.find_spec("torch") is None:
        return ["cpu"]
    n_devices = len(device_files())
    if visible is not None:
        n_devices = min(n_devices, len([part for part in visible.split(",") if _is_device(part)]))
    return [f"cuda:{number}" for number in range(n_devices)] or ["cpu"]


def device_of(replica: int, options: Replicas) -> str:
    """Give the device of a replica's number: the devices in turn."""
    devices = find_devices() if options.devices == "auto" else options.devices
    return devices[replica % len(devices)]


def _is_device(part: str) -> bool:
    return bool(part.strip()) and part.strip() != "-1"
