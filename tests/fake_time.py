"""An event loop whose time is a `FakeClock`: timers fire in order and nothing is waited for."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from mlserve.testing import FakeClock

__all__ = ["run_with_clock"]

ResultT = TypeVar("ResultT")


class _LeapingSelector(selectors.DefaultSelector):
    """Where a loop would sleep until its next timer, goes there at once."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout:
            self._clock.advance(timeout)
        return ready


class _ClockLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__(_LeapingSelector(clock))
        self._clock = clock

    def time(self) -> float:
        return self._clock()


def run_with_clock(clock: FakeClock, main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine as `asyncio.run` does; only what it waits for lets the clock go on."""
    with asyncio.Runner(loop_factory=lambda: _ClockLoop(clock)) as runner:
        return runner.run(main)
