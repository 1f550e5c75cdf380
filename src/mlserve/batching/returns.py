"""
Who comes back after a batch: whether a free replica should wait a moment for them. Pure.

Clients that ask again once they are answered return together, a moment after their batch has
ended. Taking the first of them at once wastes the batch that all would have formed. Waiting `t`
for `k` more requests saves `k` times the fixed cost `a` of a batch, and costs each of `q` that wait
already `t`: it pays if `k·a > q·t`. What is learned is how many return, when the first one does,
and how closely the others follow; without evidence nobody waits.
"""

from mlserve.batching.cost_model import CostModel

__all__ = ["Returns"]

_WINDOW_S = 0.005
"""Who comes later after a batch does not come because of it."""
_WEIGHT = 0.25
"""Of what was seen last; after three batches that nobody returned from nobody is waited for."""


_SLACK_S = 0.0002
_MOST_HELD = 0.6
"""
Of the fixed cost: a device that stands idle for longer loses more than one batch less can save,
as those who come meanwhile would have been served by the next one.
"""
_LEAST_EXPECTED = 0.5


class Returns:
    """
    Learns how clients return, and says how long to wait for them.

    Times are in monotonic seconds, and are given.
    """

    def __init__(self) -> None:
        self._share = 0.0
        self._first = CostModel()
        self._gap_s = self._longest_gap_s = 0.0
        # Of the batch that has ended last.
        self._n_done = 0
        self._done_at = self._last_at = 0.0
        self._n_returned = 0
        self._gaps_s: list[float] = []
        self._window_s = 0.0
        self._held_since: float | None = None

    def note_done(self, now: float, n: int, fixed_s: float) -> None:
        """
        Learn that a batch has ended.

        Args:
            now: When.
            n: How many requests it had.
            fixed_s: What a batch costs whatever its size, in seconds.
        """
        if self._n_done:
            self._learn()
        self._n_done, self._n_returned = n, 0
        self._done_at = self._last_at = now
        self._window_s = fixed_s if fixed_s < _WINDOW_S else _WINDOW_S

    def note_arrival(self, now: float) -> None:
        """Learn that a request has come."""
        since_s = now - self._done_at
        if since_s > self._window_s or self._n_returned >= self._n_done:
            return
        if self._n_returned == 0:
            self._first.observe(self._n_done, since_s)
        else:
            self._gaps_s.append(now - self._last_at)
        self._n_returned += 1
        self._last_at = now

    def note_sent(self) -> None:
        """Learn that a batch was sent: whoever waits next has not waited yet."""
        self._held_since = None

    def n_expected(self, n_room: int) -> float:
        """Say how many more should return, of those that there is room for; 0 for less than one."""
        n = self._share * self._n_done - self._n_returned
        if n < _LEAST_EXPECTED or n_room < 1:
            return 0.0
        return min(n, n_room)

    def hold_s(self, now: float, *, n_waiting: int, n_room: int, fixed_s: float) -> float:
        """
        Say how long to wait before this is asked again; 0 = send the batch now.

        Args:
            now: The time.
            n_waiting: How many requests would be in the batch; at least 1.
            n_room: How many more it could hold.
            fixed_s: What a batch costs whatever its size, in seconds.
        """
        n_more = self.n_expected(n_room)
        since_done_s = now - self._done_at
        if n_more == 0.0 or since_done_s > self._window_s:
            return 0.0
        if self._held_since is None:
            self._held_since = now
        first_s = self._first.predict(self._n_done)
        since_last_s = now - self._last_at
        next_s = self._gap_s - since_last_s if self._n_returned else first_s - since_done_s
        next_s = max(next_s, 0.0)
        all_s = next_s + max(n_more - 1, 0) * self._gap_s
        worth_s = n_more * fixed_s / n_waiting
        held_s = now - self._held_since
        if all_s >= worth_s or held_s + all_s > _MOST_HELD * fixed_s:
            return 0.0
        late_s = since_last_s if self._n_returned else since_done_s - first_s
        patience_s = min(max(2 * self._longest_gap_s + _SLACK_S, worth_s / 4), fixed_s / 2)
        if late_s > patience_s:
            return 0.0
        return max(next_s, _SLACK_S)

    def _learn(self) -> None:
        """Take in what followed the batch before."""
        self._share += _WEIGHT * (self._n_returned / self._n_done - self._share)
        if self._gaps_s:
            mean_s = sum(self._gaps_s) / len(self._gaps_s)
            self._gap_s += _WEIGHT * (mean_s - self._gap_s)
            self._longest_gap_s += _WEIGHT * (max(self._gaps_s) - self._longest_gap_s)
            self._gaps_s.clear()

    def __repr__(self) -> str:
        return f"<Returns {self._share:.0%}, {self._n_returned} of {self._n_done} by now>"
