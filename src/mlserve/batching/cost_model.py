"""What a batch costs: `a + b·n` seconds for n requests, learned from batches that ran. Pure."""

from typing import Protocol

__all__ = ["BatchCost", "CostModel", "queue_capacity"]

_DECAY = 0.98  # an observation of 35 batches ago counts half
_MIN_OBSERVATIONS = 5


class BatchCost(Protocol):
    """What is known of the cost of a batch."""

    @property
    def n_observed(self) -> int:
        """From how many batches."""

    @property
    def is_known(self) -> bool:
        """Whether enough batches were seen to say anything."""

    def predict(self, n: int) -> float:
        """Say how long a batch of `n` should take, in seconds; 0 when nothing is known."""


class CostModel:
    """
    Least squares of duration over batch size, with exponentially fading memory.

    Source:
        Recursive weighted least squares with a forgetting factor, for a line.

    Example:
        >>> model = CostModel()
        >>> for n in (1, 2, 4, 8, 16):
        ...     model.observe(n, 0.005 + 0.001 * n)
        >>> round(model.predict(32), 3)
        0.037
    """

    def __init__(self) -> None:
        self.n_observed = 0
        self._weight = self._n = self._s = self._nn = self._ns = 0.0
        self._line: tuple[float, float] | None = None  # until something new is learned

    def observe(self, n: int, duration_s: float) -> None:
        """Learn that a batch of `n` took `duration_s` seconds."""
        self.n_observed += 1
        self._weight = self._weight * _DECAY + 1
        self._n = self._n * _DECAY + n
        self._s = self._s * _DECAY + duration_s
        self._nn = self._nn * _DECAY + n * n
        self._ns = self._ns * _DECAY + n * duration_s
        self._line = None

    @property
    def is_known(self) -> bool:
        """Whether enough batches were seen to say anything."""
        return self.n_observed >= _MIN_OBSERVATIONS

    @property
    def line(self) -> tuple[float, float]:
        """`a` in seconds and `b` in seconds per request, neither below zero."""
        if self._line is None:
            self._line = self._fitted()
        return self._line

    def predict(self, n: int) -> float:
        """Say how long a batch of `n` should take, in seconds; 0 when nothing is known."""
        fixed, each = self.line
        return fixed + each * n

    def largest_within(self, target_s: float, max_size: int) -> int:
        """Say how many requests a batch may hold to stay within `target_s` seconds; at least 1."""
        if not self.is_known:
            return max_size
        fixed, each = self.line
        if fixed + each * max_size <= target_s:
            return max_size
        return max(1, min(max_size, int((target_s - fixed) / each))) if each > 0 else 1

    def _fitted(self) -> tuple[float, float]:
        weight = self._weight
        if weight == 0:
            return 0.0, 0.0
        mean_n, mean_s = self._n / weight, self._s / weight
        variance = self._nn / weight - mean_n * mean_n
        if variance <= 1e-9:  # one size only: the whole cost may as well be fixed
            return mean_s, 0.0
        slope = (self._ns / weight - mean_n * mean_s) / variance
        slope = min(max(slope, 0.0), mean_s / mean_n)
        return mean_s - slope * mean_n, slope


def queue_capacity(
    cost: BatchCost, *, max_size: int, n_replicas: int, timeout_s: float, n_known: int = 20
) -> int:
    """
    Say how many requests may wait: what full batches serve in a third of the timeout.

    At least eight batches and at most 4,096; 1,024 until `n_known` batches were measured.
    """
    if cost.n_observed < n_known:
        return 1024
    duration_s = cost.predict(max_size)
    if duration_s <= 0:
        return max(4096, 8 * max_size)
    served = n_replicas * max_size / duration_s * timeout_s / 3
    return int(max(8 * max_size, min(4096, served)))
