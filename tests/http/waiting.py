"""Waiting for what no event tells, with an end."""

import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until a condition holds that only looking at it can tell."""
    pause = threading.Event()
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "The condition did not come true in time."
        pause.wait(0.002)
