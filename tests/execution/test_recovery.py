"""Which exceptions mean lack of memory or a broken device, and that what they held is let go."""

import gc
import traceback
import weakref

import numpy as np
import pytest
import torch

from mlserve.errors import MLServeError
from mlserve.execution.recovery import (
    Collector,
    free_memory,
    is_device_broken,
    is_out_of_memory,
    let_go,
)
from mlserve.testing import FakeClock


class OutOfMemoryError(Exception):
    """Another framework's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        np.exceptions.__dict__.get("_ArrayMemoryError", MemoryError)(),
        OutOfMemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried 8 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 800000000000 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
    ids=repr,
)
def test_lack_of_memory_is_known_by_class_or_message(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_the_real_allocator_of_the_cpu_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)

    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: device-side assert triggered"),
        KeyError("memory"),
        MLServeError("CUDA out of memory"),
    ],
    ids=repr,
)
def test_other_failures_are_not_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


class AcceleratorError(Exception):
    """Another framework's."""


class SubclassError(torch.AcceleratorError):
    """A library's own."""


class SpeechlessError(RuntimeError):
    """Fails when it is asked what it says."""

    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("something new"),
        SubclassError("something new"),
        AcceleratorError(),
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
        RuntimeError("CUDA error: an illegal instruction was encountered"),
        RuntimeError("HIP error: the operation cannot be performed in the present state"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("[Rank 0] Device-Side Assert in kernel gather"),
        NotImplementedError("cuDNN: unspecified launch failure"),
    ],
    ids=repr,
)
def test_a_broken_device_is_known_by_class_or_message(error: Exception) -> None:
    assert is_device_broken(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        torch.AcceleratorError("HIP out of memory. Tried to allocate 20.00 GiB."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        MemoryError("CUDA error"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("relationship error: no such edge"),
        RuntimeError(),
        ValueError("CUDA error: device-side assert triggered"),
        MLServeError("CUDA error: device-side assert triggered"),
        KeyError("illegal memory access"),
        KeyboardInterrupt(),
        SpeechlessError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_lack_of_memory_and_other_failures_leave_the_device_usable(error: BaseException) -> None:
    assert not is_device_broken(error)


class Big:
    """Stands for a tensor."""


def test_what_the_frames_of_an_exception_hold_is_let_go_and_its_traceback_stays() -> None:
    refs: list[weakref.ref[Big]] = []

    def infer() -> None:
        tensor = Big()
        refs.append(weakref.ref(tensor))
        try:
            inner = Big()
            refs.append(weakref.ref(inner))
            raise MemoryError
        except MemoryError as exc:
            raise RuntimeError("wrapped") from exc

    error: BaseException | None = None
    try:
        infer()
    except RuntimeError as exc:
        error = exc
    assert error is not None
    let_go(error)
    gc.collect()

    assert [ref() for ref in refs] == [None, None]
    assert "in infer" in "".join(traceback.format_exception(error))


def test_memory_can_be_freed_without_a_device() -> None:
    free_memory()


def test_garbage_is_collected_for_a_tenth_of_the_time_at_most() -> None:
    clock = FakeClock()
    n_collected = 0

    def collect() -> None:
        nonlocal n_collected
        n_collected += 1
        clock.advance(0.5)

    collector = Collector(collect, clock)
    for _ in range(100):
        collector.collect()
        clock.advance(0.1)

    assert n_collected == 3
