"""The figures of one model, as users see them."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Figures", "Statistics", "statistics_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one set of replicas has done and is doing; see `Statistics` for each."""

    replicas: int
    in_flight: int
    queued: int
    running: int
    queue_capacity: int
    requests: int
    refused: int
    batches: int
    batched: int
    """How many requests were in the batches."""
    splits: int
    out_of_memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a model has done since it was loaded, and is doing."""

    state: str
    """Where it is in its life, such as `ready`."""
    replicas: int
    """How many replicas serve."""
    in_flight: int
    """How many requests were accepted and not answered yet."""
    queued: int
    """How many of them wait."""
    running: int
    """How many requests a hook is at work for; those that nobody waits for any more included."""
    queue_capacity: int
    """How many may wait."""
    requests: int
    """How many requests were accepted."""
    batches: int
    """How many batches were run."""
    mean_batch_size: float
    """How many requests a batch held on average; 0 before the first."""
    splits: int
    """How often a batch that failed was split, to find the request that made it fail."""
    out_of_memory: int
    """How often memory ran out."""
    refused: int
    """How many requests found no room."""


def statistics_of(state: str, now: Figures, older: Sequence[Figures]) -> Statistics:
    """
    Put together the figures of a model.

    Args:
        state: Where it is in its life.
        now: What its present replicas do.
        older: What those do that a reload has retired.
    """
    return Statistics(
        state=state,
        replicas=now.replicas,
        in_flight=now.in_flight + sum(figures.in_flight for figures in older),
        queued=now.queued,
        running=now.running + sum(figures.running for figures in older),
        queue_capacity=now.queue_capacity,
        requests=now.requests,
        batches=now.batches,
        mean_batch_size=now.batched / now.batches if now.batches else 0.0,
        splits=now.splits,
        out_of_memory=now.out_of_memory,
        refused=now.refused,
    )
