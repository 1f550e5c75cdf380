"""When a model with `count=(min, max)` gets another replica and when it loses one. No clock."""

__all__ = ["LONG_WAIT_S", "Scaling"]

LONG_WAIT_S = 0.1
"""
A wait from which on there are too few replicas, in seconds.

What takes less seems immediate to people (Miller 1968, "Response time in man-computer
conversational transactions"), and most batches take less, so that waiting for the one that runs is
not lack of replicas yet.
"""
_ROOM = 0.7
"""How much of its load fewer replicas must bear easily, before there are fewer."""


class Scaling:
    """
    Says how many replicas there should be; asked about once a second.

    One more when requests have waited long for a while and all replicas serve that were asked for
    before. One less when the load has fitted into the others for much longer, as a replica that is
    missing costs its users more than one that idles.

    Args:
        min_count: The fewest replicas.
        max_count: The most replicas.
        long_wait_s: Which wait is too long, in seconds; for batches that take longer than
            `LONG_WAIT_S` it should be more.
        grow_after_s: How long waits must be too long without a break, in seconds.
        shrink_after_s: How long one replica less must suffice without a break, in seconds.
    """

    def __init__(
        self,
        min_count: int,
        max_count: int,
        *,
        long_wait_s: float = LONG_WAIT_S,
        grow_after_s: float = 3.0,
        shrink_after_s: float = 60.0,
    ) -> None:
        self.n_wanted = min_count
        """What was decided last."""
        self._min_count = min_count
        self._max_count = max_count
        self.long_wait_s = long_wait_s
        """Which wait is too long, in seconds."""
        self._grow_after_s = grow_after_s
        self._shrink_after_s = shrink_after_s
        self._crowded_since: float | None = None
        self._roomy_since: float | None = None
        # For a number of replicas, the load that was too much for it: constant load would else
        # shrink to that number again and again, and grow again each time.
        self._too_much: dict[int, float] = {}

    def decide(
        self, now: float, *, n_replicas: int, wait_s: float, busy_share: float, n_loading: int = 0
    ) -> int:
        """
        Give the number of replicas that there should be.

        Args:
            now: Monotonic seconds, never less than before.
            n_replicas: How many there are, those included that are being loaded.
            wait_s: How long a request that comes now would wait in the queue, in seconds.
            busy_share: Which share of those that serve was at work on average since the last
                call, from 0 to 1.
            n_loading: How many are being loaded; nothing grows until they serve.
        """
        n_serving = n_replicas - n_loading
        load = busy_share * n_serving
        is_crowded = wait_s > self.long_wait_s
        is_roomy = not is_crowded and load <= _ROOM * self._bearable(self.n_wanted - 1)
        is_complete = n_serving >= self.n_wanted
        self._crowded_since = _since(self._crowded_since, now, holds=is_crowded and is_complete)
        self._roomy_since = _since(self._roomy_since, now, holds=is_roomy)
        if self._has_lasted(self._crowded_since, now, self._grow_after_s, self._max_count):
            self._too_much[self.n_wanted] = load
            self._move(1)
        elif self._has_lasted(self._roomy_since, now, self._shrink_after_s, self._min_count):
            self._move(-1)
        return self.n_wanted

    def _bearable(self, n_replicas: int) -> float:
        return min(n_replicas, self._too_much.get(n_replicas, n_replicas))

    def _has_lasted(self, since: float | None, now: float, long_s: float, end: int) -> bool:
        return since is not None and now - since >= long_s and self.n_wanted != end

    def _move(self, step: int) -> None:
        self.n_wanted += step
        self._crowded_since = self._roomy_since = None

    def __repr__(self) -> str:
        return f"<Scaling {self.n_wanted} of {self._min_count} to {self._max_count}>"


def _since(since: float | None, now: float, *, holds: bool) -> float | None:
    """Give since when something holds: from before, from now, or it does not."""
    if not holds:
        return None
    return now if since is None else since
