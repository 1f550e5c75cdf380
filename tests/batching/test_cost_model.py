"""What a batch costs: the line is found, and what is derived from it keeps its bounds."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlserve.batching.cost_model import CostModel, queue_capacity

durations = st.floats(0, 100)
observations = st.lists(st.tuples(st.integers(1, 256), durations), max_size=60)


def model_of(seen: list[tuple[int, float]]) -> CostModel:
    model = CostModel()
    for n, duration_s in seen:
        model.observe(n, duration_s)
    return model


@given(
    st.floats(1e-5, 1),
    st.floats(1e-6, 1e-1),
    st.lists(st.integers(1, 64), min_size=5, max_size=60).filter(lambda ns: len(set(ns)) > 1),
)
def test_a_line_is_recovered_from_batches_of_different_sizes(
    fixed_s: float, each_s: float, sizes: list[int]
) -> None:
    model = model_of([(n, fixed_s + each_s * n) for n in sizes])

    found_fixed_s, found_each_s = model.line

    assert found_fixed_s == pytest.approx(fixed_s, rel=1e-3, abs=1e-6)
    assert found_each_s == pytest.approx(each_s, rel=1e-3, abs=1e-7)
    assert model.predict(100) == pytest.approx(fixed_s + 100 * each_s, rel=1e-2)


@given(observations)
def test_neither_part_of_the_line_is_below_zero(seen: list[tuple[int, float]]) -> None:
    fixed_s, each_s = model_of(seen).line

    assert fixed_s >= -1e-9
    assert each_s >= 0


@given(observations, st.floats(1e-6, 100), st.integers(1, 256))
def test_the_largest_batch_is_between_one_and_max_size(
    seen: list[tuple[int, float]], target_s: float, max_size: int
) -> None:
    assert 1 <= model_of(seen).largest_within(target_s, max_size) <= max_size


@given(observations, st.floats(1e-6, 100), st.floats(1, 10), st.integers(1, 256))
def test_more_time_never_allows_a_smaller_batch(
    seen: list[tuple[int, float]], target_s: float, factor: float, max_size: int
) -> None:
    model = model_of(seen)

    assert model.largest_within(target_s, max_size) <= model.largest_within(
        target_s * factor, max_size
    )


def test_the_largest_batch_keeps_within_the_target() -> None:
    model = model_of([(n, 0.010 + 0.001 * n) for n in (1, 2, 4, 8, 16)])

    n = model.largest_within(0.0205, 64)

    assert n == 10
    assert model.predict(n) <= 0.0205 < model.predict(n + 1)


def test_a_target_below_the_fixed_cost_still_allows_one_request() -> None:
    model = model_of([(n, 0.010 + 0.001 * n) for n in (1, 2, 4, 8, 16)])

    assert model.largest_within(0.001, 64) == 1


def test_a_cost_that_does_not_grow_and_is_over_the_target_allows_one_request() -> None:
    model = model_of([(8, 0.5)] * 5)

    assert model.largest_within(0.1, 64) == 1
    assert model.largest_within(0.5, 64) == 64


def test_nothing_is_said_before_five_batches_were_seen() -> None:
    model = model_of([(1, 1.0)] * 4)

    assert not model.is_known
    assert model.largest_within(0.001, 64) == 64


def test_nothing_known_predicts_nothing() -> None:
    assert CostModel().line == (0.0, 0.0)
    assert CostModel().predict(32) == 0.0


def test_one_size_only_makes_the_whole_cost_fixed() -> None:
    assert model_of([(8, 0.25)] * 10).line == pytest.approx((0.25, 0.0))


def test_what_was_learnt_long_ago_fades() -> None:
    slow = [(n, 0.1 * n) for n in (1, 2, 4, 8)] * 10
    fast = [(n, 0.001 * n) for n in (1, 2, 4, 8)] * 200

    assert model_of(slow + fast).predict(8) == pytest.approx(0.008, rel=1e-3)


@given(
    observations,
    st.integers(1, 600),
    st.integers(1, 16),
    st.floats(0.01, 600) | st.just(math.inf),
)
@example(seen=[(1, 0.0)], max_size=513, n_replicas=1, timeout_s=1.0)
def test_the_queues_capacity_is_at_least_eight_batches_and_at_most_4096(
    seen: list[tuple[int, float]], max_size: int, n_replicas: int, timeout_s: float
) -> None:
    capacity = queue_capacity(
        model_of(seen),
        max_size=max_size,
        n_replicas=n_replicas,
        timeout_s=timeout_s,
        n_known=1,
    )

    if seen:
        assert 8 * max_size <= capacity <= max(4096, 8 * max_size)
    else:
        assert capacity == 1024


def test_the_queue_holds_what_full_batches_serve_in_a_third_of_the_timeout() -> None:
    model = model_of([(10, 0.1)] * 20)

    capacity = queue_capacity(model, max_size=10, n_replicas=2, timeout_s=9.0)

    assert capacity == pytest.approx(600, abs=1)


def test_a_model_that_costs_nothing_gets_the_largest_queue() -> None:
    model = model_of([(4, 0.0)] * 20)

    assert queue_capacity(model, max_size=4, n_replicas=1, timeout_s=1.0) == 4096
