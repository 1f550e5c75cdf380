"""What came of a load test, in numbers. Pure."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlserve.loadtest.connection import LOST, Answer

__all__ = ["Percentiles", "Summary", "percentile", "summarised"]

_SHARES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of durations, in seconds."""

    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Percentiles | None":
        """Give those of some values; `None` without any."""
        ordered = sorted(values)
        if not ordered:
            return None
        p50, p90, p95, p99, p999 = (percentile(ordered, share) for share in _SHARES)
        return cls(p50, p90, p95, p99, p999, ordered[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came of a load test."""

    seconds: float
    """How long it was asked."""
    n_sent: int
    """How many requests there were."""
    n_unsent: int
    """How many more should have been sent, and no connection was free."""
    statuses: dict[str, int]
    """How many answers had each status; `lost` = none came."""
    per_s: float
    """How many were answered with success, per second."""
    latency: Percentiles | None
    """Of the successes, from when they were due."""
    refusals: Percentiles | None
    """Of what was refused with 429 or 503, likewise."""
    goodput_per_s: float | None
    """How many succeeded within the objective, per second; `None` without one."""
    first_chunk: Percentiles | None
    """From when a stream was due to its first event."""
    between_chunks: Percentiles | None
    """From one event to the next."""
    chunks_per_s: float
    """How many events came, per second."""

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON values; durations stay in seconds."""
        return asdict(self)


def percentile(ordered: Sequence[float], share: float) -> float:
    """
    Give the least value that so large a share of all is not above (nearest rank).

    Args:
        ordered: At least one value, in ascending order.
        share: From 0 to 1.

    Example:
        >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
        2.0
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarised(
    answers: Sequence[Answer], seconds: float, *, n_unsent: int = 0, slo_s: float | None = None
) -> Summary:
    """
    Put together what came of a load test.

    Args:
        answers: All of them.
        seconds: How long it was asked.
        n_unsent: How many requests could not be sent.
        slo_s: Within which time an answer is of use, in seconds; `None` = always.
    """
    good = [answer for answer in answers if 200 <= answer.status < 300]
    refused = [answer for answer in answers if answer.status in (429, 503)]
    statuses = Counter("lost" if a.status == LOST else str(a.status) for a in answers)
    streams = [answer.chunks_at for answer in good if answer.chunks_at]
    in_time = [answer for answer in good if slo_s is None or answer.latency_s <= slo_s]
    return Summary(
        seconds=seconds,
        n_sent=len(answers),
        n_unsent=n_unsent,
        statuses=dict(sorted(statuses.items())),
        per_s=len(good) / seconds,
        latency=Percentiles.of(answer.latency_s for answer in good),
        refusals=Percentiles.of(answer.latency_s for answer in refused),
        goodput_per_s=None if slo_s is None else len(in_time) / seconds,
        first_chunk=Percentiles.of(
            answer.chunks_at[0] - answer.due_at for answer in good if answer.chunks_at
        ),
        between_chunks=Percentiles.of(
            after - before for chunks in streams for before, after in itertools.pairwise(chunks)
        ),
        chunks_per_s=sum(map(len, streams)) / seconds,
    )
