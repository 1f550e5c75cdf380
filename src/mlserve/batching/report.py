"""What became of a batch, as the replica that ran it tells."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlserve.job import Job

__all__ = ["BatchReport"]


@dataclass(slots=True)
class BatchReport:
    """Filled while a batch runs; read by the batcher and the pool once it has ended."""

    infer_at: float = 0.0
    """When it began, in monotonic seconds."""
    infer_s: float = 0.0
    """How long `infer` took in all, in seconds."""
    n_splits: int = 0
    """How often a part of the batch failed and was split."""
    n_isolated: int = 0
    """How many requests were found to be what made it fail."""
    n_out_of_memory: int = 0
    """How often memory ran out."""
    too_large: Sequence[Job] = ()
    """The smallest part of several requests for which memory did not suffice."""
    has_failed: bool = False
    """Whether `infer` failed for every request, and none of them was at fault."""
