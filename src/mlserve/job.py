"""
The job: one request on its way through the server, with the sink that takes its answer.

Unary work is a stream of one: the same job carries either, and only its sink differs.
"""

import asyncio
import math
from collections.abc import Hashable
from typing import Any, Protocol

from mlserve.cache import CacheUse, Wish
from mlserve.handler import Call

__all__ = ["FutureSink", "Job", "Sink", "StageTimes"]


class Sink(Protocol):
    """Takes the answer of one job, exactly once; further answers are ignored. Event loop only."""

    def result(self, value: Any) -> None:
        """Take the response: the job succeeded."""

    def fail(self, error: BaseException) -> None:
        """Take the error: the job failed."""


class FutureSink:
    """The sink of a unary job; only the first answer counts."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future

    def result(self, value: Any) -> None:
        """Resolve the future, unless nobody waits any more."""
        if not self._future.done():
            self._future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Fail the future, unless nobody waits any more."""
        if not self._future.done():
            self._future.set_exception(error)


class StageTimes:
    """
    How long the stages of one job took, in seconds, and in what company.

    When each began is in monotonic seconds; 0 = it did not come to it.
    """

    __slots__ = (
        "batch_size",
        "chunks",
        "infer_at",
        "infer_s",
        "postprocess_at",
        "postprocess_s",
        "preprocess_at",
        "preprocess_s",
        "queue_at",
        "queue_s",
    )

    def __init__(self) -> None:
        self.queue_at = self.preprocess_at = self.infer_at = self.postprocess_at = 0.0
        self.queue_s = 0.0
        self.preprocess_s = 0.0
        self.infer_s = 0.0
        self.postprocess_s = 0.0
        self.batch_size = 0
        self.chunks = 0


class Job:
    """
    One request: payload, deadline, priority, tenant, cost, key, cancel flag and sink.

    Created and answered on the event loop; runners in other threads read it and write `payload`
    and `times` while the job is theirs.

    Args:
        payload: The request; after `preprocess`, the input.
        call: What the hooks may know of it; carries the deadline and the cancel flag.
        timeout_s: The whole budget in seconds, for the message when it is spent.
        priority: 0 is served first, 9 last.
        tenant: Whose it is: within one priority tenants take turns; `None` = nobody's.
    """

    __slots__ = (
        "cache_use",
        "call",
        "cost",
        "enqueued_at",
        "key",
        "lane",
        "payload",
        "priority",
        "sink",
        "stage",
        "tenant",
        "timeout_s",
        "times",
        "wish",
    )

    def __init__(
        self,
        payload: Any,
        call: Call,
        *,
        timeout_s: float,
        priority: int = 0,
        tenant: str | None = None,
    ) -> None:
        self.payload = payload
        self.call = call
        self.timeout_s = timeout_s
        self.priority = priority
        self.tenant = tenant
        self.cost: int = 1
        self.key: Hashable = None
        self.enqueued_at: float = math.nan
        """When it entered the queue, in monotonic seconds."""
        self.stage = "preprocess"
        """Where it is: `preprocess`, `queue`, `infer`, `postprocess` or `stream`."""
        self.sink: Sink | None = None
        self.lane: Any = None
        """What leads it through the model, while it is in flight."""
        self.wish: Wish | None = None
        """What it wishes of the cache of its model, if that has one."""
        self.cache_use: CacheUse | None = None
        """What the cache had to do with its answer."""
        self.times = StageTimes()

    @property
    def deadline(self) -> float:
        """When its budget ends, in monotonic seconds."""
        return self.call.deadline

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its answer any more."""
        return self.call.cancelled

    def result(self, value: Any) -> None:
        """Hand the response to the sink. Event loop only."""
        if self.sink is not None:
            self.sink.result(value)

    def fail(self, error: BaseException) -> None:
        """Hand the error to the sink. Event loop only."""
        if self.sink is not None:
            self.sink.fail(error)

    def __repr__(self) -> str:
        return f"<Job {self.call.request_id} in {self.stage}, cost {self.cost}>"
