"""The order in which systems are measured, and what they are asked."""

import pytest
from benchmarks.compare.plan import interleaved
from benchmarks.compare.systems import SYSTEMS, named
from benchmarks.compare.workloads import CEILING_PER_S, WORKLOADS, ceiling_per_s, payloads, texts
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(), unique=True, max_size=12), st.integers(0, 5))
def test_every_round_has_every_system_once(systems: list[int], n_rounds: int) -> None:
    turns = list(interleaved(systems, n_rounds))

    for number in range(n_rounds):
        assert sorted(s for n, s in turns if n == number) == sorted(systems)
    assert [n for n, _ in turns] == sorted(n for n, _ in turns)


def test_each_round_begins_with_another_system() -> None:
    assert [system for _, system in interleaved("AB", 2)] == ["A", "B", "B", "A"]


def test_a_name_stands_for_its_variants_too() -> None:
    assert [s.name for s in named(["fastapi"])] == ["fastapi", "fastapi-def", "fastapi-events"]
    assert [s.name for s in named(["fastapi-def"])] == ["fastapi-def"]
    with pytest.raises(ValueError, match="Unknown systems: tensorflow"):
        named(["tensorflow"])


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_serves_known_workloads_and_reads_its_own_form(name: str) -> None:
    system = SYSTEMS[name]

    assert system.paths
    assert system.paths.keys() <= WORKLOADS.keys()
    for workload in system.paths:
        assert system.body(payloads(WORKLOADS[workload])[0])


def test_the_accelerator_has_the_ceiling_of_full_batches() -> None:
    assert round(CEILING_PER_S) == 3902
    assert ceiling_per_s(256) == CEILING_PER_S
    assert round(ceiling_per_s(16)) == 2424
    assert round(ceiling_per_s(1)) == 196


def test_texts_are_the_same_each_time_and_of_mixed_lengths() -> None:
    lengths = sorted(len(text.split()) for text in texts())

    assert texts() == texts()
    assert lengths[len(lengths) // 2] < 60
    assert lengths[-1] == 250


def test_answers_of_all_forms_are_read() -> None:
    assert SYSTEMS["mlserve"].read(b'{"y":3.0}') == 3.0
    assert SYSTEMS["bentoml-batched"].read(b"[3.0]") == 3.0
    assert SYSTEMS["mlserver"].read(b'{"outputs":[{"data":[3.0]}]}') == 3.0
    stream = b'data: {"i":0}\n\ndata: {"i":1}\n\ndata: [DONE]\n\n'
    assert SYSTEMS["mlserve"].read(stream) == [0, 1]
