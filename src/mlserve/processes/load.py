"""How much the replicas of a model have to do, as their board tells."""

import math
from collections.abc import Collection

from mlserve.processes.board import Board

__all__ = ["Load"]


class Load:
    """
    Follows the load of a model. On the supervisor's event loop.

    Args:
        board: The figures of its processes.
        max_size: How many requests a batch holds at most.
    """

    def __init__(self, board: Board, max_size: int) -> None:
        self._board = board
        self._max_size = max_size
        self._n_serving = 1
        self._n_busy = self._n_sampled = 0

    def sample(self, serving: Collection[int]) -> None:
        """Look which of the replicas that serve are at work."""
        self._n_serving = max(1, len(serving))
        self._n_sampled += len(serving)
        self._n_busy += sum(self._board.replicas[number].kill_at > 0 for number in serving)

    def take_busy_share(self) -> float:
        """Give the share of samples that found a replica at work, since the last call."""
        share = self._n_busy / self._n_sampled if self._n_sampled else 0.0
        self._n_busy = self._n_sampled = 0
        return share

    def batch_s(self) -> float:
        """Say how long a full batch takes, in seconds; 0 when that is not known."""
        cost = self._board.learned_cost()
        return cost.predict(self._max_size) if cost.is_known else 0.0

    def wait_s(self) -> float:
        """Say how long a request that comes now would wait, in seconds."""
        n_waiting = self._board.n_waiting()
        if n_waiting == 0:
            return 0.0
        batch_s = self.batch_s()
        if batch_s == 0 or self._board.n_waiting_streams():  # nobody knows how long these take
            return math.inf
        return n_waiting / self._max_size * batch_s / self._n_serving

    def __repr__(self) -> str:
        return f"<Load of {self._board!r}>"
