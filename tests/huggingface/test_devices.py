"""The choices that depend on the device, as a machine with or without one would make them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlserve.execution.devices import available_cores
from mlserve.handler import Context
from mlserve.huggingface import TextClassification, TextEmbedding
from mlserve.huggingface._devices import (
    encoder_batching,
    encoder_replicas,
    image_batching,
    place,
    resolve_dtype,
    to_device,
)


def test_auto_is_float32_on_cpu() -> None:
    assert resolve_dtype("auto", "cpu") is torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_auto_is_bfloat16_only_on_cuda_devices_that_compute_in_it(
    capability: tuple[int, int], dtype: torch.dtype
) -> None:
    assert resolve_dtype("auto", "cuda", capability) is dtype


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_taken_on_every_device(name: str, device_type: str) -> None:
    assert resolve_dtype(name, device_type, (7, 0)) is getattr(torch, name)


@pytest.mark.parametrize(("n_cuda", "budget"), [(0, 512), (1, 16_384), (8, 16_384)])
def test_the_budget_of_padded_tokens_is_larger_on_cuda(n_cuda: int, budget: int) -> None:
    batching = encoder_batching(n_cuda)

    assert (batching.max_cost, batching.padded, batching.max_size) == (budget, True, 64)


def test_images_are_batched_by_number_and_more_of_them_on_cuda() -> None:
    cpu, cuda = image_batching(0), image_batching(1)

    assert cpu.max_cost is None
    assert cuda.max_cost is None
    assert cpu.max_size < cuda.max_size


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float32), ((9, 0), torch.bfloat16)]
)
def test_a_replica_asks_its_own_cuda_device_what_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    facts = {torch.device("cuda:1"): capability}
    monkeypatch.setattr(torch.cuda, "get_device_capability", facts.__getitem__)

    placed = place(Context(device="cuda:1", threads=1), "auto")

    assert placed == (torch.device("cuda:1"), dtype)


def test_copies_to_cuda_start_in_page_locked_memory_and_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned, copies = torch.ones(2), []

    def note_copy(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        copies.append((tensor, device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned)
    monkeypatch.setattr(torch.Tensor, "to", note_copy)

    to_device({"input_ids": torch.zeros(2)}, torch.device("cuda:0"))

    assert [(copy[0] is pinned, *copy[1:]) for copy in copies] == [
        (True, torch.device("cuda:0"), True)
    ]


def test_nothing_is_pinned_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned.append)
    tensor = torch.zeros(2)

    assert to_device({"input_ids": tensor}, torch.device("cpu"))["input_ids"] is tensor
    assert pinned == []


@given(n_cores=st.integers(min_value=0, max_value=512))
def test_on_cpu_there_is_a_single_threaded_replica_per_core_up_to_four(n_cores: int) -> None:
    replicas = encoder_replicas(0, n_cores)

    assert replicas.count == max(1, min(n_cores, 4))
    assert replicas.devices == ("cpu",)
    assert replicas.threads_per_replica == 1


@given(n_cuda=st.integers(min_value=1, max_value=16), n_cores=st.integers(1, 512))
def test_on_cuda_there_is_one_replica_with_all_threads(n_cuda: int, n_cores: int) -> None:
    replicas = encoder_replicas(n_cuda, n_cores)

    assert replicas.count == 1
    assert replicas.devices == ("cuda:0",)
    assert replicas.threads_per_replica is None


@pytest.mark.parametrize("handler", [TextEmbedding, TextClassification])
def test_the_handlers_take_the_defaults_of_this_machine(
    handler: type[TextEmbedding | TextClassification],
) -> None:
    n_cuda = torch.cuda.device_count()

    assert handler.batching == encoder_batching(n_cuda)
    assert handler.replicas == encoder_replicas(n_cuda, available_cores())
