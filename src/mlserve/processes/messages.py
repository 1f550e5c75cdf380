"""
What the processes say to each other: the kinds of messages and what each carries.

A message is a tuple whose first item is its kind. Ids belong to one link and one direction: an
HTTP process numbers its requests.
"""

from typing import Final

from mlserve.observability.loggers import get_logger
from mlserve.processes.frames import Parcel, pack, unpack

__all__ = [
    "BEAT",
    "BROKEN",
    "CANCEL",
    "CHUNK",
    "CREDIT",
    "END",
    "ERROR",
    "FAILED",
    "IS_ALONE",
    "IS_STREAM",
    "LISTEN",
    "LOADED",
    "LOG",
    "LOST",
    "MENDED",
    "NOT_BEGUN",
    "NOT_STARTED",
    "PROGRESS",
    "READY",
    "REPLICA_PROGRESS",
    "REPLICA_UP",
    "RESULT",
    "RETIRE",
    "RETIRING",
    "SERVING",
    "STARTED",
    "STATUS",
    "STOP",
    "SUBMIT",
    "WARMING",
    "WATCH_HEALTH",
    "pack_error",
]

logger = get_logger(__name__)

# From an HTTP process to a replica.
SUBMIT: Final = 1
"""
`id, slot, flags, request id, deadline, timeout, priority, tenant or None, headers or None,
payload`.
"""
# A request that is traced has its `traceparent` behind that.
CANCEL: Final = 2
"""`id`: nobody waits for the answer any more."""
CREDIT: Final = 3
"""`id, n`: n more chunks may be sent."""

# From a replica to an HTTP process.
RESULT: Final = 10
"""
`id, times, annotations or None, response`; the times of a request that is traced say when, too.
"""
ERROR: Final = 11
"""`id, times, annotations or None, error`; for a stream, its end."""
CHUNK: Final = 12
"""`id, chunk`, and behind that the tokens that hooks have noted, if they have changed."""
END: Final = 13
"""`id, times, annotations or None`: a stream has ended."""
RETIRING: Final = 14
"""Nothing that waits here will be begun: send it elsewhere."""
BROKEN: Final = 15
"""It fails on the handler's own examples."""
MENDED: Final = 16
"""It does no longer."""
NOT_BEGUN: Final = 17
"""`id`: no hook will be begun for it here, send it elsewhere."""

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

# From an HTTP process to the supervisor.
SERVING: Final = 40
"""It takes connections."""
BEAT: Final = 41
"""Its event loop turns."""
LISTEN: Final = 42
"""`model, version`: start its replicas if they are not, and tell what becomes of them."""

LOST: Final = 43
"""
`model, version, number, pid`: the way to that process of that replica has ended, or for process 0
has not arrived.
"""

# From the supervisor to an HTTP process.
REPLICA_UP: Final = 50
"""`model, version, number`: a socket that leads to that replica is at the door."""
STATUS: Final = 51
"""`model, version, status` of its fleet."""
STARTED: Final = 52
"""`model, version, n_examples`: all its replicas can serve."""
NOT_STARTED: Final = 53
"""`model, version, error`: what starting them raised."""
REPLICA_PROGRESS: Final = 54
"""`model, version, number, fraction, note` of `load`."""
LOADED: Final = 55
"""`model, version`: `load` of a replica has returned."""

# Flags of `SUBMIT`.
IS_STREAM: Final = 1
IS_ALONE: Final = 2
"""Run nothing else beside it: it may be what ended another process."""


def pack_error(error: BaseException, instead: Exception | None = None) -> Parcel:
    """
    Pack an exception so that it comes back as what it is.

    Args:
        error: The exception.
        instead: Packed if it would not come back; `None` = its text.
    """
    try:
        packed = pack(error)
        unpack(packed)  # one with a constructor of its own may not come back
    except Exception as exc:  # whatever is wrong with it
        logger.warning("error.pack.failed", exc_info=exc)
        packed = pack(instead or RuntimeError(f"{type(error).__name__}: {error}"))
    return packed
