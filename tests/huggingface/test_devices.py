"""The choices that depend on the device, as a machine with or without one would make them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlserve.huggingface import TextClassification, TextEmbedding
from mlserve.huggingface._devices import (
    available_cores,
    encoder_batching,
    encoder_replicas,
    resolve_dtype,
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


@pytest.mark.parametrize(("n_cuda", "budget"), [(0, 2_048), (1, 16_384), (8, 16_384)])
def test_the_budget_of_padded_tokens_is_larger_on_cuda(n_cuda: int, budget: int) -> None:
    batching = encoder_batching(n_cuda)

    assert (batching.max_cost, batching.padded, batching.max_size) == (budget, True, 64)


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
