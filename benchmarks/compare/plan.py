"""In which order systems are measured. Pure."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["interleaved"]

T = TypeVar("T")


def interleaved(systems: Sequence[T], n_rounds: int) -> Iterator[tuple[int, T]]:
    """
    Give each system once in every round, so that the machine's moods meet all alike.

    Each round begins with the next system, so that none always follows the same machine state.

    Example:
        >>> list(interleaved("ABC", 2))
        [(0, 'A'), (0, 'B'), (0, 'C'), (1, 'B'), (1, 'C'), (1, 'A')]
    """
    for number in range(n_rounds):
        first = number % max(len(systems), 1)
        for system in [*systems[first:], *systems[:first]]:
            yield number, system
