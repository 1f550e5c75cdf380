"""
The ends of the time that requests have. Lives on the event loop.

Requests mostly have equal times and are done long before: a timer of the loop for each of them
would cost more than queueing it. Those that end within the same few milliseconds share one.
"""

import asyncio
import math
from collections.abc import Callable

from mlserve.job import Job
from mlserve.observability.loggers import get_logger

__all__ = ["Deadlines"]

logger = get_logger(__name__)

_GRAIN_S = 0.005


class _Due:
    """Jobs that end together."""

    __slots__ = ("handle", "jobs")

    def __init__(self, handle: asyncio.TimerHandle) -> None:
        self.handle = handle
        self.jobs: set[Job] = set()


class Deadlines:
    """
    Calls back for each job at its deadline, and at most five milliseconds later.

    Args:
        clock: Gives monotonic seconds, as deadlines are counted in.
        expire: Called on the event loop with a job whose time is over; it is not here any more.
    """

    def __init__(self, clock: Callable[[], float], expire: Callable[[Job], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._due: dict[int, _Due] = {}

    def add(self, job: Job) -> None:
        """Watch a job; its deadline does not change from here on."""
        slot = math.ceil(job.call.deadline / _GRAIN_S)
        due = self._due.get(slot)
        if due is None:
            left_s = max(0.0, slot * _GRAIN_S - self._clock())
            handle = asyncio.get_running_loop().call_later(left_s, self._ring, slot)
            due = self._due[slot] = _Due(handle)
        due.jobs.add(job)

    def remove(self, job: Job) -> None:
        """Watch a job no longer; does nothing if it is not watched."""
        slot = math.ceil(job.call.deadline / _GRAIN_S)
        due = self._due.get(slot)
        if due is None:
            return
        due.jobs.discard(job)
        if not due.jobs:
            due.handle.cancel()
            del self._due[slot]

    def _ring(self, slot: int) -> None:
        due = self._due[slot]
        while due.jobs:  # the end of one may take another one away
            try:
                self._expire(due.jobs.pop())
            except Exception:  # the others must end whatever happens
                logger.exception("deadline.expire.failed")
        self._due.pop(slot, None)

    def __repr__(self) -> str:
        return f"<Deadlines of {sum(len(due.jobs) for due in self._due.values())} jobs>"
