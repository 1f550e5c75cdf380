"""The figures of one model, as users see them."""

from dataclasses import dataclass

__all__ = ["Figures", "Statistics"]


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
