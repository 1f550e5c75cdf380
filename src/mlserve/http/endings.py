"""
The ends of requests that had no task: counted and logged together, once their answers have left.

Requests come and are answered in batches. Where the log goes and who counts has to be looked up
once for all that are answered in one turn of the event loop, and no answer waits for it.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from mlserve.observability.access_log import Noted, log_inferences
from mlserve.observability.loggers import get_logger

__all__ = ["Ending", "Endings"]

logger = get_logger(__name__)


class Ending(Protocol):
    """A request that has its answer, or will never get one."""

    @property
    def request_id(self) -> str:
        """Its id."""

    def settle(self) -> Sequence[Noted]:
        """Have it counted; give what is to be logged of it."""


class Endings:
    """Ends requests at the end of the turn in which they were answered. Event loop only."""

    def __init__(self) -> None:
        self._ended: list[Ending] = []

    def add(self, ending: Ending) -> None:
        """Have a request counted and logged soon."""
        if not self._ended:
            asyncio.get_running_loop().call_soon(self._settle)
        self._ended.append(ending)

    def _settle(self) -> None:
        ended, self._ended = self._ended, []
        noted: list[Noted] = []
        for ending in ended:
            try:
                noted += ending.settle()
            except Exception:  # others must not be lost with it, and the answer is sent
                about = {"request_id": ending.request_id}
                logger.exception("request.end.failed", extra=about)
        log_inferences(noted)

    def __repr__(self) -> str:
        return f"<Endings of {len(self._ended)} requests>"
