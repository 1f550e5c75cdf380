"""Which devices replicas are given, without any GPU or ML framework."""

import importlib.metadata
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.execution import devices
from mlserve.execution.devices import available_cores, device_of, find_devices
from mlserve.settings import Replicas


@pytest.fixture
def torch_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.8.0+cu128")


def files(n: int) -> list[str]:
    return [f"/dev/nvidia{number}" for number in range(n)]


@pytest.mark.usefixtures("torch_for_gpus")
@pytest.mark.parametrize(
    ("environment", "n_files", "found"),
    [
        ({}, 0, ["cpu"]),
        ({}, 2, ["cuda:0", "cuda:1"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 2, ["cuda:0"]),
        ({"CUDA_VISIBLE_DEVICES": "0, 1"}, 2, ["cuda:0", "cuda:1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, ["cpu"]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 2, ["cpu"]),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 1, ["cuda:0"]),
    ],
)
def test_nvidia_devices_are_found_within_what_is_visible(
    environment: dict[str, str], n_files: int, found: list[str]
) -> None:
    assert find_devices(environment, lambda: files(n_files)) == found


def test_without_torch_there_is_only_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)

    assert find_devices({}, lambda: files(2)) == ["cpu"]


def test_with_a_torch_for_cpus_there_is_only_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.8.0+cpu")

    assert find_devices({}, lambda: files(2)) == ["cpu"]


def test_what_is_found_here_can_be_given_to_a_replica() -> None:
    found = find_devices()

    assert found == ["cpu"] or all(name.startswith("cuda:") for name in found)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.integers(0, 20))
def test_replicas_get_the_listed_devices_in_turn(names: list[str], replica: int) -> None:
    assert device_of(replica, Replicas(devices=names)) == names[replica % len(names)]


def test_replicas_get_the_found_devices_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_devices", lambda: ["cuda:0", "cuda:1"])

    assert [device_of(n, Replicas()) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]


def test_only_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6}, raising=False)

    assert available_cores() == 3


@pytest.mark.parametrize(("n_cores", "counted"), [(6, 6), (None, 1)])
def test_where_the_system_does_not_say_which_cores_may_be_used_all_count(
    monkeypatch: pytest.MonkeyPatch, n_cores: int | None, counted: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: n_cores)

    assert available_cores() == counted
