"""
Counting many at once: to write each number of each request by itself costs more than to answer it.

What was noted stands in a list until it is many, or until somebody is about to read the families.
Where other processes read them, it is written 0.05 s later at the latest.
"""

import asyncio
import atexit
import os
import threading
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from prometheus_client import Counter, Histogram, Metric, values

__all__ = ["GatheredCounter", "GatheredHistogram", "Gathering", "is_sharing", "write_gathered"]

_MOST = 64
_LATEST_S = 0.05
_T = TypeVar("_T")
_all: list["Gathering[Any]"] = []


def is_sharing() -> bool:
    """Say whether this process counts in files, which others read."""
    # That is settled when `prometheus_client` is imported.
    return bool(values.ValueClass._multiprocess)  # noqa: SLF001


class Gathering(Generic[_T]):
    """
    What was noted and is not written yet; one lives as long as the process. Any thread.

    Args:
        write: Adds what was noted to the families, in the thread of who notes or of who reads.
    """

    def __init__(self, write: Callable[[list[_T]], None]) -> None:
        self._write = write
        self._is_sharing = is_sharing()
        self.reset()
        if self._is_sharing and not _all:
            atexit.register(write_gathered)
            os.register_at_fork(after_in_child=_reset)
        _all.append(self)

    def reset(self) -> None:
        """Begin anew, as in a fork: what was noted before is the business of who was forked."""
        self._noted: list[_T] = []
        # Who reads in this process comes by anyway; for others somebody has to.
        self._is_awaited = not self._is_sharing
        self._lock = threading.Lock()

    def note(self, *what: _T) -> None:
        """Keep what is noted until it is written."""
        self._noted.extend(what)
        if not self._is_awaited:
            self._await()
        elif len(self._noted) >= _MOST:
            self.write()

    def write(self) -> None:
        """Write what was noted before; who comes while another thread does, waits for it."""
        with self._lock:
            # First of all: who notes something from here on sees to it that it is written.
            self._is_awaited = not self._is_sharing
            noted = self._noted[:]
            del self._noted[: len(noted)]  # not what was added meanwhile
            if noted:
                self._write(noted)

    def _await(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # nobody would come by
            self.write()
        else:
            self._is_awaited = True
            loop.call_later(_LATEST_S, self.write)


def write_gathered() -> None:
    """Write all that was noted in this process. Any thread."""
    for gathering in _all:
        gathering.write()


def _reset() -> None:
    for gathering in _all:
        gathering.reset()


class GatheredCounter(Counter):
    """A counter that whoever reads it finds written."""

    def collect(self) -> Iterable[Metric]:
        """Give its samples, with all that was noted."""
        write_gathered()
        return super().collect()

    def inc_all(self, amounts: Iterable[float]) -> None:
        """Add each of them. Any thread."""
        self.inc(sum(amounts))


class GatheredHistogram(Histogram):
    """A histogram that whoever reads it finds written, and that can observe many at once."""

    def collect(self) -> Iterable[Metric]:
        """Give its samples, with all that was noted."""
        write_gathered()
        return super().collect()

    def observe_all(self, amounts: Sequence[float], *, unit_s: float = 1.0) -> None:
        """
        Observe each of them. Any thread.

        Args:
            amounts: Numbers, none of which is NaN.
            unit_s: What they are multiples of.
        """
        if len(amounts) <= 1:
            for amount in amounts:
                self.observe(amount * unit_s)
            return
        self._sum.inc(sum(amounts) * unit_s)
        bounds = self._upper_bounds
        if unit_s != 1.0:
            bounds = [round(bound / unit_s, 9) for bound in bounds]
        places = map(partial(bisect_left, bounds), amounts)
        for place, n in Counts(places).items():
            self._buckets[place].inc(n)
