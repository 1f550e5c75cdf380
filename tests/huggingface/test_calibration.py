"""The choice of a budget, on a machine whose speed the test makes up."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.huggingface.tiny_models import loaded, run

from mlserve import Batching
from mlserve.huggingface import EmbeddingRequest, Reranking, TextEmbedding
from mlserve.huggingface._calibration import FACTORS, measure_budget
from mlserve.huggingface._encoder import Encoder
from mlserve.testing import FakeClock

DEFAULT = 512


def measured(rate: Callable[[int], float], seconds: float = 60.0) -> tuple[int, float]:
    """Choose on a machine that reads `rate(budget)` tokens/s, and say how long it took."""
    clock = FakeClock()

    def run_batch(budget: int) -> int:
        clock.advance(budget / rate(budget))
        return budget

    return measure_budget(run_batch, DEFAULT, seconds, clock), clock()


@pytest.mark.parametrize("factor", FACTORS)
def test_the_budget_with_most_tokens_per_second_is_chosen(factor: float) -> None:
    best = int(DEFAULT * factor)

    chosen, _ = measured(lambda budget: 9_000 if budget == best else 6_000)

    assert chosen == best


def test_the_default_stays_unless_another_is_clearly_better() -> None:
    chosen, _ = measured(lambda budget: 6_500 if budget > DEFAULT else 6_000)

    assert chosen == DEFAULT


def test_a_machine_too_slow_to_be_measured_keeps_the_default() -> None:
    chosen, _ = measured(lambda budget: budget / 10.0, seconds=2.0)

    assert chosen == DEFAULT


@given(seconds=st.floats(0.01, 30), rates=st.lists(st.floats(100, 1e6), min_size=4, max_size=4))
def test_no_run_is_begun_once_the_time_is_over(seconds: float, rates: list[float]) -> None:
    by_budget = dict(zip((int(DEFAULT * factor) for factor in FACTORS), rates, strict=True))
    longest_s = max(budget / rate for budget, rate in by_budget.items())

    chosen, took_s = measured(by_budget.__getitem__, seconds)

    assert chosen in by_budget
    assert took_s <= (seconds + longest_s) * (1 + 1e-9)


def test_nothing_is_measured_unless_asked_for(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Encoder, "forward")

    handler = loaded(TextEmbedding(encoder))

    assert handler.encoder.budget is None


def test_a_measured_budget_is_among_the_multiples_of_the_default(encoder: Path) -> None:
    handler = TextEmbedding(encoder)
    handler.calibration_s = 0.05

    loaded(handler)

    assert handler.encoder.budget in {int(DEFAULT * factor) for factor in FACTORS}
    assert run(handler, handler.examples())


@pytest.mark.parametrize(("factor", "cost"), [(0.5, 10), (1, 5), (2, 3), (4, 2)])
def test_a_larger_budget_makes_texts_cheaper(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, factor: float, cost: int
) -> None:
    name = "mlserve.huggingface._encoder.measure_budget"
    monkeypatch.setattr(name, lambda run, default, *rest: int(default * factor))
    handler = TextEmbedding(encoder)
    handler.calibration_s = 1.0

    tokens = loaded(handler).preprocess(EmbeddingRequest(text="a good film"))

    assert handler.cost(tokens) == cost


def test_who_bounds_batches_by_himself_is_not_measured_for(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Encoder, "forward")
    handler = TextEmbedding(encoder)
    handler.calibration_s = 1.0

    loaded(handler, batching=Batching(max_cost=DEFAULT - 1, padded=True))

    assert handler.cost(handler.preprocess(EmbeddingRequest(text="a good film"))) == 5


def test_runs_of_a_reranker_have_the_measured_budget(
    ranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mlserve.huggingface._encoder.measure_budget"
    monkeypatch.setattr(name, lambda run, default, *rest: 2 * default)
    handler = Reranking(ranker)
    handler.calibration_s = 1.0

    assert loaded(handler).padded_tokens == 2 * DEFAULT
