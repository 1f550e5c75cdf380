"""
The ends of requests that had no task: counted and logged together, once their answers have left.

Requests come and are answered in batches. Where the log goes and who counts has to be looked up
once for all that are answered in one turn of the event loop, and no answer waits for it.
"""

import asyncio

from mlserve.http.exchange import Exchange
from mlserve.observability.access_log import Noted, log_inferences
from mlserve.observability.loggers import get_logger

__all__ = ["Endings"]

logger = get_logger(__name__)


class Endings:
    """Ends exchanges at the end of the turn in which they were answered. Event loop only."""

    def __init__(self) -> None:
        self._exchanges: list[Exchange] = []

    def add(self, exchange: Exchange) -> None:
        """Have an exchange ended that has its answer, or will never get one."""
        if not self._exchanges:
            asyncio.get_running_loop().call_soon(self._end)
        self._exchanges.append(exchange)

    def _end(self) -> None:
        exchanges, self._exchanges = self._exchanges, []
        noted: list[Noted] = []
        for exchange in exchanges:
            try:
                noted += exchange.settle()
            except Exception:  # others must not be lost with it, and the answer is sent
                about = {"request_id": exchange.request_id}
                logger.exception("request.end.failed", extra=about)
        log_inferences(noted)

    def __repr__(self) -> str:
        return f"<Endings of {len(self._exchanges)} requests>"
