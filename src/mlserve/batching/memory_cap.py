"""The largest batch that fits into memory, as far as it has been learned. Pure."""

__all__ = ["MemoryCap"]

_RAISED_AFTER = 64
_RAISED_BY = 8  # an eighth


class MemoryCap:
    """
    Halved when memory runs out, raised by an eighth after 64 batches in a row that fitted.

    The unit is that of the batch's bound: requests, or cost where `Batching.max_cost` is set.

    Args:
        ceiling: The bound of the options; the cap never exceeds it.

    Example:
        >>> cap = MemoryCap(32)
        >>> cap.lower(20)
        >>> cap
        <MemoryCap 10 of 32>
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._n_fitting = 0
        self.limit = ceiling
        """The largest batch that should be tried."""
        self.is_lowered = False
        """Whether memory allows less than the options do."""

    def lower(self, failed: int) -> None:
        """Learn that a batch of this size did not fit."""
        self.limit = max(1, min(self.limit, failed // 2))
        self.is_lowered = self.limit < self._ceiling
        self._n_fitting = 0

    def note_fit(self, size: int) -> None:
        """Learn that a batch of this size fitted; one that is far below the cap says nothing."""
        if not self.is_lowered or 2 * size < self.limit:
            return
        self._n_fitting += 1
        if self._n_fitting >= _RAISED_AFTER:
            self._n_fitting = 0
            self.limit = min(self._ceiling, self.limit + max(1, self.limit // _RAISED_BY))
            self.is_lowered = self.limit < self._ceiling

    def __repr__(self) -> str:
        return f"<MemoryCap {self.limit} of {self._ceiling}>"
