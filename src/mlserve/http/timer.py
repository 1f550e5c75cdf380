"""A call that is due later, unless it is called off."""

import asyncio
from collections.abc import Callable

__all__ = ["Timer"]


class Timer:
    """
    One call on the event loop; starting it again replaces it.

    Args:
        loop: The event loop.
    """

    __slots__ = ("_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether the call is due."""
        return self._handle is not None

    def start(self, wait_s: float, then: Callable[[], None]) -> None:
        """Call `then` in so many seconds; it is held no longer than that."""
        self.stop()
        self._handle = self._loop.call_later(wait_s, self._ring, then)

    def stop(self) -> None:
        """Call it off; does nothing if it is not due."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self, then: Callable[[], None]) -> None:
        self._handle = None
        then()
