"""How many connections each of several HTTP processes has, so that each takes its share."""

import math
import mmap
from typing import Self

from mlserve.processes.memory import shared_memory

__all__ = ["Tally", "may_take"]

_DOUBLE = 8
_UNEVEN = 8


def may_take(n_own: float, n_least: float) -> bool:
    """
    Say whether a process may take one more connection; pure.

    Args:
        n_own: How many it has.
        n_least: How many that one of the others has that has the fewest; infinite = nobody else
            takes any.
    """
    return math.isinf(n_least) or n_own <= n_least + n_least // _UNEVEN


class Tally:
    """
    The numbers of connections, in memory that all the processes share.

    Args:
        fd: An open file that `create` has made; it is not needed any more then.
        n: How many processes there are.
    """

    def __init__(self, fd: int, n: int) -> None:
        self._memory = mmap.mmap(fd, n * _DOUBLE)
        self._cells = memoryview(self._memory).cast("d")

    @classmethod
    def create(cls, n: int) -> tuple[Self, int]:
        """Make a tally of processes that take nothing yet, and give it with its open file."""
        fd = shared_memory("mlserve-tally", n * _DOUBLE)
        tally = cls(fd, n)
        for index in range(n):
            tally.leave(index)
        return tally, fd

    def note(self, index: int, n_connections: int) -> None:
        """Note how many connections a process has; it takes more."""
        self._cells[index] = n_connections

    def leave(self, index: int) -> None:
        """Note that a process takes no more."""
        self._cells[index] = math.inf

    def least(self, index: int) -> float:
        """Give the smallest number of the others that take connections; infinite = none does."""
        return min((n for i, n in enumerate(self._cells) if i != index), default=math.inf)

    def __repr__(self) -> str:
        return f"<Tally {self._cells.tolist()}>"
