"""
What the processes say to each other: the kinds of messages and what each carries.

A message is a tuple whose first item is its kind. Ids belong to one link and one direction: an
HTTP process numbers its requests.
"""

from typing import Final

__all__ = [
    "BROKEN",
    "CANCEL",
    "CHUNK",
    "CREDIT",
    "END",
    "ERROR",
    "FAILED",
    "IS_ALONE",
    "IS_STREAM",
    "LOG",
    "MENDED",
    "PROGRESS",
    "READY",
    "RESULT",
    "RETIRE",
    "RETIRING",
    "STOP",
    "SUBMIT",
    "WARMING",
    "WATCH_HEALTH",
]

# From an HTTP process to a replica.
SUBMIT: Final = 1
"""`id, slot, flags, request id, deadline, timeout, priority, headers or None, payload`."""
CANCEL: Final = 2
"""`id`: nobody waits for the answer any more."""
CREDIT: Final = 3
"""`id, n`: n more chunks may be sent."""

# From a replica to an HTTP process.
RESULT: Final = 10
"""`id, times, annotations or None, response`."""
ERROR: Final = 11
"""`id, times, annotations or None, error`; for a stream, its end."""
CHUNK: Final = 12
"""`id, chunk`."""
END: Final = 13
"""`id, times, annotations or None`: a stream has ended."""
RETIRING: Final = 14
"""Nothing that waits here will be begun: send it elsewhere."""
BROKEN: Final = 15
"""It fails on the handler's own examples."""
MENDED: Final = 16
"""It does no longer."""

# From the supervisor to a replica.
RETIRE: Final = 21
"""`reason`: finish what runs, begin nothing, unload and end."""
STOP: Final = 22
"""Unload and end."""
WATCH_HEALTH: Final = 23
"""`period_s`: call the `health` hook that often."""

# From a replica to the supervisor, beside `RETIRING`, `BROKEN` and `MENDED`.
PROGRESS: Final = 30
"""`fraction, note` of `load`."""
WARMING: Final = 31
"""`load` has returned."""
READY: Final = 32
"""`n_examples`: it can serve."""
FAILED: Final = 33
"""`error, traceback`: what loading raised."""
LOG: Final = 34
"""`record`: a line of its log."""

# Flags of `SUBMIT`.
IS_STREAM: Final = 1
IS_ALONE: Final = 2
"""Run nothing else beside it: it may be what ended another process."""
