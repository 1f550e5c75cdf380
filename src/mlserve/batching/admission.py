"""Whether a request may wait, from what batches were measured to cost. Pure, but for chance."""

import random
from enum import Enum

from mlserve.batching.cost_model import BatchCost, queue_capacity
from mlserve.errors import CapacityError, OverloadedError, QueueFullError

__all__ = ["Admission", "Refusal"]

_SHARE = 3  # what is admitted by itself should be served in a third of its time
_LEAST_BATCHES = 8
_SHORTEST_S, _LONGEST_S = 0.1, 60.0


class Refusal(Enum):
    """Why a request may not wait."""

    FULL = "full"
    """As many wait as may wait at all."""
    TOO_LATE = "too late"
    """Its own time would be over, or nearly so, before its turn."""


# Looked up once: a member of an enumeration takes a call each time.
_FULL, _TOO_LATE = Refusal


class Admission:
    """
    Bounds the queue by number and by time.

    Args:
        model: The model's name, for messages.
        max_queue_size: The bound by number; `None` = what is served in a third of `timeout_s`.
        timeout_s: The longest budget of a request, in seconds.
        max_size: How many requests a batch holds at most.
    """

    def __init__(
        self, model: str, max_queue_size: int | None, timeout_s: float, max_size: int
    ) -> None:
        self._model = model
        self._max_queue_size = max_queue_size
        self._timeout_s = timeout_s
        self._max_size = max_size
        self._learned_from: tuple[int, int] | None = None
        self._batch_s = 0.0
        self._n_replicas = 1
        self.capacity = 0
        """How many requests may wait."""

    def learn(self, cost: BatchCost, n_replicas: int) -> None:
        """Look at what batches have cost so far; cheap when nothing is new."""
        state = (cost.n_observed, n_replicas)
        if state == self._learned_from:
            return
        self._learned_from = state
        self._n_replicas = n_replicas
        self._batch_s = cost.predict(self._max_size) if cost.is_known else 0.0
        self.capacity = (
            queue_capacity(
                cost,
                max_size=self._max_size,
                n_replicas=n_replicas,
                timeout_s=self._timeout_s,
            )
            if self._max_queue_size is None
            else self._max_queue_size
        )

    def wait_s(self, n_ahead: int) -> float:
        """Say how long the full batches ahead will take at least; 0 when nothing is known."""
        return n_ahead // self._max_size * self._batch_s / self._n_replicas

    def refuse(
        self, *, n_waiting: int, n_ahead: int, budget_s: float, left_s: float, n_kept: int = 0
    ) -> Refusal | None:
        """
        Say whether a request has to be refused.

        Args:
            n_waiting: How many requests wait.
            n_ahead: How many of them will be served first.
            budget_s: The whole time of this request, in seconds.
            left_s: What is left of it, in seconds.
            n_kept: How many of the last places are kept for others.
        """
        if n_waiting >= self.capacity - n_kept:
            return _FULL
        wait_s = self.wait_s(n_ahead)
        if wait_s > left_s:
            return _TOO_LATE
        is_short = n_ahead < _LEAST_BATCHES * self._max_size
        if self._max_queue_size is None and not is_short and wait_s > budget_s / _SHARE:
            return _TOO_LATE
        return None

    def error(
        self, *, n_waiting: int, n_ahead: int, budget_s: float, left_s: float, n_kept: int = 0
    ) -> CapacityError | None:
        """Give the error of a request that has to be refused, as by `refuse`."""
        refusal = self.refuse(
            n_waiting=n_waiting, n_ahead=n_ahead, budget_s=budget_s, left_s=left_s, n_kept=n_kept
        )
        if refusal is None:
            return None
        # Not all at the same moment: who was refused together should not come back together.
        retry_after_s = self.retry_after_s(n_waiting) * random.uniform(0.75, 1.25)
        if refusal is _FULL:
            return QueueFullError(self._model, self.capacity - n_kept, retry_after_s)
        return OverloadedError(self._model, self.wait_s(n_ahead), retry_after_s)

    def retry_after_s(self, n_waiting: int) -> float:
        """Say when half of what waits will have been served, in seconds; 1 when unknown."""
        if self._batch_s == 0:
            return 1.0
        half_s = n_waiting / 2 / self._max_size * self._batch_s / self._n_replicas
        return min(max(half_s, _SHORTEST_S), _LONGEST_S)

    def __repr__(self) -> str:
        return f"<Admission of {self.capacity}, {self._batch_s:.3g} s a batch>"
