"""What one model's requests and batches add to the families."""

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from mlserve.job import StageTimes
from mlserve.observability import metrics
from mlserve.observability.access_log import InferenceLine, inference_line
from mlserve.observability.metrics import batch_metrics, model_metrics, note_figures

LABELS = {"model": "counted", "version": "v1"}


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, LABELS | labels) or 0.0


@pytest.fixture
def added() -> Callable[..., float]:
    """Give how much a sample has grown since the test began."""
    before = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
    }

    def grown(name: str, **labels: str) -> float:
        key = name, frozenset((LABELS | labels).items())
        return value(name, **labels) - before.get(key, 0.0)

    return grown


def line(
    *, code: str | None = None, status: int = 200, batch_size: int = 4, **stages: float
) -> InferenceLine:
    times = StageTimes()
    times.batch_size = batch_size
    for name, seconds in stages.items():
        setattr(times, name, seconds)
    return inference_line(
        request_id="r",
        model="counted",
        version="v1",
        status=status,
        code=code,
        total_s=0.2,
        times=times,
        annotations={},
    )


def note(given: InferenceLine, **annotations: Any) -> None:
    model_metrics("counted", "v1").note_request(given, annotations)


def test_a_request_is_counted_with_its_time_and_that_of_each_stage_it_came_to(
    added: Callable[..., float],
) -> None:
    note(line(queue_s=0.01, infer_s=0.1))

    assert added("mlserve_requests_total", code="ok") == 1
    assert added("mlserve_request_duration_seconds_count") == 1
    assert added("mlserve_request_duration_seconds_sum") == pytest.approx(0.2)
    stages = "mlserve_stage_duration_seconds"
    assert added(f"{stages}_sum", stage="queue") == pytest.approx(0.01)
    assert added(f"{stages}_sum", stage="infer") == pytest.approx(0.1)
    assert added(f"{stages}_count", stage="preprocess") == 0


def test_a_failure_is_counted_by_its_code(added: Callable[..., float]) -> None:
    note(line(code="model_error", status=500))
    note(line(code="validation_error", status=422, batch_size=0))

    assert added("mlserve_requests_total", code="model_error") == 1
    assert added("mlserve_requests_total", code="validation_error") == 1
    assert added("mlserve_requests_total", code="ok") == 0
    assert added("mlserve_request_duration_seconds_count") == 2


@pytest.mark.parametrize(
    ("code", "status"), [("queue_full", 503), ("draining", 503), ("rate_limited", 429)]
)
def test_a_refusal_is_counted_by_its_reason_and_has_no_duration(
    added: Callable[..., float], code: str, status: int
) -> None:
    note(line(code=code, status=status, batch_size=0))

    assert added("mlserve_requests_rejected_total", reason=code) == 1
    assert added("mlserve_requests_total", code=code) == 1
    assert added("mlserve_request_duration_seconds_count") == 0


def test_tokens_are_counted_by_their_kind(added: Callable[..., float]) -> None:
    note(line(), prompt_tokens=7, completion_tokens=5)

    assert added("mlserve_tokens_total", kind="prompt") == 7
    assert added("mlserve_tokens_total", kind="completion") == 5


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "7", None, float("nan")])
def test_what_is_no_count_of_tokens_is_left_out(added: Callable[..., float], wrong: Any) -> None:
    note(line(), prompt_tokens=wrong)

    assert added("mlserve_tokens_total", kind="prompt") == 0
    assert added("mlserve_requests_total", code="ok") == 1


def test_the_first_chunk_and_the_others_are_told_apart(added: Callable[..., float]) -> None:
    counted = model_metrics("counted", "v1")
    counted.note_chunk(0.5, is_first=True)
    counted.note_chunk(0.01, is_first=False)
    counted.note_chunk(0.02, is_first=False)

    assert added("mlserve_time_to_first_chunk_seconds_sum") == pytest.approx(0.5)
    assert added("mlserve_time_between_chunks_seconds_count") == 2


def test_a_batch_is_counted_with_its_size_its_cost_and_its_padding(
    added: Callable[..., float],
) -> None:
    batch_metrics("counted", "v1").note_batch([10, 30, 20], is_padded=True)

    assert added("mlserve_batch_size_sum") == 3
    assert added("mlserve_batch_cost_sum") == 60
    assert added("mlserve_batch_padding_ratio_sum") == pytest.approx(1 / 3)


@pytest.mark.parametrize(("costs", "is_padded"), [([10, 30], False), ([0, 0], True)])
def test_a_batch_that_is_not_padded_has_no_padding(
    added: Callable[..., float], costs: list[int], is_padded: bool
) -> None:
    batch_metrics("counted", "v1").note_batch(costs, is_padded=is_padded)

    assert added("mlserve_batch_size_count") == 1
    assert added("mlserve_batch_padding_ratio_count") == 0


def test_troubles_and_starts_are_counted(added: Callable[..., float]) -> None:
    counted = batch_metrics("counted", "v1")
    counted.note_troubles(n_splits=3, n_isolated=1, n_out_of_memory=2)
    counted.note_troubles(n_splits=0, n_isolated=0, n_out_of_memory=0)
    counted.note_start()

    assert added("mlserve_batch_splits_total") == 3
    assert added("mlserve_poison_isolated_total") == 1
    assert added("mlserve_out_of_memory_total") == 2
    assert added("mlserve_replica_starts_total") == 1


def test_the_gauges_are_what_they_were_set_to_last() -> None:
    for n in (3, 1):
        note_figures(
            "counted",
            "v1",
            in_flight=n,
            queued=n,
            queue_capacity=100 * n,
            replicas=n,
            is_ready=n == 1,
        )

    assert value("mlserve_requests_in_flight") == 1
    assert value("mlserve_queue_depth") == 1
    assert value("mlserve_queue_capacity") == 100
    assert value("mlserve_replicas") == 1
    assert value("mlserve_model_ready") == 1


def test_every_family_has_a_help_and_our_prefix() -> None:
    described = [metric for family in metrics.FAMILIES for metric in family.describe()]

    assert len(described) >= 20
    assert all(family.name.startswith("mlserve_") for family in described)
    assert all(family.documentation.endswith(".") for family in described)
