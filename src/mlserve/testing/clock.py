"""A clock that stands still until it is told to go on."""

__all__ = ["FakeClock"]


class FakeClock:
    """
    Gives monotonic seconds under the test's control.

    Args:
        now: Where it begins.

    Example:
        >>> clock = FakeClock()
        >>> clock.advance(1.5)
        >>> clock()
        1.5
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Say what time it is, in monotonic seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """
        Go on by some seconds.

        Raises:
            ValueError: If that is back.
        """
        if seconds < 0:
            raise ValueError(f"A monotonic clock only goes on, got {seconds!r}.")
        self.now += seconds

    def __repr__(self) -> str:
        return f"<FakeClock {self.now}>"
