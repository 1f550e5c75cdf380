"""A call that is due later, unless it is called off."""

import asyncio
from collections.abc import Callable

__all__ = ["Timer"]


class Timer:
    """
    One call on the event loop; starting it again replaces it.

    Starting and stopping costs next to nothing: what the event loop holds is kept, and looks when
    it rings whether it has to wait on.

    Args:
        loop: The event loop.
    """

    __slots__ = ("_due", "_handle", "_loop", "_rings_at", "_then")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._then: Callable[[], None] | None = None
        self._due = self._rings_at = 0.0
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether the call is due."""
        return self._then is not None

    def start(self, wait_s: float, then: Callable[[], None]) -> None:
        """Call `then` in so many seconds; it is held no longer than that."""
        self._then = then
        self._due = self._loop.time() + wait_s
        if self._handle is None or self._rings_at > self._due:
            self._set(wait_s)

    def stop(self) -> None:
        """Call it off; does nothing if it is not due."""
        self._then = None

    def close(self) -> None:
        """Call it off for good: the event loop holds nothing any more."""
        self._then = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _set(self, wait_s: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._rings_at = self._due
        self._handle = self._loop.call_later(wait_s, self._ring)

    def _ring(self) -> None:
        self._handle = None
        left_s = self._due - self._loop.time()
        if self._then is not None and left_s > 0:
            self._set(left_s)
        elif self._then is not None:
            then, self._then = self._then, None
            then()
