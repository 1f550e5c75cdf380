"""Laws of admission: who may wait, and when the others should come back."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mlserve.batching.admission import Admission, Refusal
from mlserve.batching.cost_model import CostModel
from mlserve.errors import OverloadedError, QueueFullError


def learned(
    batch_s: float,
    *,
    max_queue_size: int | None = None,
    timeout_s: float = 60.0,
    max_size: int = 1,
    n_replicas: int = 1,
) -> Admission:
    """Make an admission that has seen 20 batches of one duration."""
    cost = CostModel()
    for _ in range(20):
        cost.observe(max_size, batch_s)
    admission = Admission("m", max_queue_size, timeout_s, max_size)
    admission.learn(cost, n_replicas)
    return admission


def refuse(admission: Admission, n: int, budget_s: float) -> Refusal | None:
    return admission.refuse(n_waiting=n, n_ahead=n, budget_s=budget_s, left_s=budget_s)


def test_nothing_known_is_bounded_by_number_only() -> None:
    admission = Admission("m", None, 60.0, 32)
    admission.learn(CostModel(), 1)

    assert admission.capacity == 1024
    assert refuse(admission, 1023, 0.001) is None
    assert refuse(admission, 1024, 60.0) is Refusal.FULL
    assert admission.retry_after_s(1024) == 1.0


def test_a_request_that_would_expire_before_its_turn_is_refused() -> None:
    admission = learned(1.0, max_queue_size=100)

    assert refuse(admission, 5, budget_s=4.9) is Refusal.TOO_LATE
    assert refuse(admission, 5, budget_s=5.1) is None


def test_what_is_admitted_by_itself_is_served_in_a_third_of_its_own_time() -> None:
    admission = learned(0.0025)

    assert refuse(admission, 33, budget_s=0.25) is None
    assert refuse(admission, 34, budget_s=0.25) is Refusal.TOO_LATE


def test_eight_batches_may_always_wait_where_there_is_time() -> None:
    admission = learned(1.0, timeout_s=10.0)

    assert refuse(admission, 7, budget_s=10.0) is None
    assert refuse(admission, 8, budget_s=10.0) is Refusal.FULL


@given(
    st.floats(1e-6, 100),
    st.integers(1, 64),
    st.integers(1, 8),
    st.integers(0, 10_000),
    st.floats(1e-3, 1e6) | st.just(math.inf),
    st.none() | st.integers(1, 10_000),
)
def test_whoever_may_wait_has_a_place_and_the_time(
    batch_s: float,
    max_size: int,
    n_replicas: int,
    n: int,
    budget_s: float,
    max_queue_size: int | None,
) -> None:
    admission = learned(
        batch_s, max_queue_size=max_queue_size, max_size=max_size, n_replicas=n_replicas
    )

    if refuse(admission, n, budget_s) is None:
        assert n < admission.capacity
        assert admission.wait_s(n) <= budget_s
    assert 0.1 <= admission.retry_after_s(n) <= 60.0


@given(st.floats(1e-4, 10), st.integers(1, 64), st.integers(0, 5000), st.integers(0, 5000))
def test_the_wait_grows_with_the_queue(batch_s: float, max_size: int, one: int, other: int) -> None:
    admission = learned(batch_s, max_size=max_size)

    shorter, longer = sorted((one, other))

    assert admission.wait_s(shorter) <= admission.wait_s(longer)
    assert admission.retry_after_s(shorter) <= admission.retry_after_s(longer)


def test_who_is_refused_is_told_why_and_when_to_come_back() -> None:
    admission = learned(1.0, max_queue_size=10)

    late = admission.error(n_waiting=8, n_ahead=8, budget_s=5.0, left_s=5.0)
    full = admission.error(n_waiting=10, n_ahead=0, budget_s=5.0, left_s=5.0)
    fine = admission.error(n_waiting=8, n_ahead=0, budget_s=5.0, left_s=5.0)

    assert isinstance(late, OverloadedError)
    assert 3.0 <= (late.retry_after_s or 0.0) <= 5.0
    assert isinstance(full, QueueFullError)
    assert 3.75 <= (full.retry_after_s or 0.0) <= 6.25
    assert fine is None


def test_who_is_refused_together_is_not_to_come_back_together() -> None:
    admission = learned(1.0, max_queue_size=10)

    errors = [admission.error(n_waiting=10, n_ahead=0, budget_s=5.0, left_s=5.0) for _ in range(20)]

    assert len({error.retry_after_s for error in errors if error is not None}) > 10
