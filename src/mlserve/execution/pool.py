"""
The replicas of one model: which one is free, which streams wait, who is healthy.

Lives on the event loop.
"""

import asyncio
import itertools
import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from mlserve.batching.next_batch import NextBatch
from mlserve.batching.queue import BatchLimits, RequestQueue
from mlserve.batching.report import BatchReport
from mlserve.errors import MLServeError
from mlserve.execution.backoff import backoff_s
from mlserve.execution.breaker import Breaker
from mlserve.execution.thread import OnReport, Prepared, ThreadReplica
from mlserve.execution.worker import TaskSet
from mlserve.job import Job
from mlserve.observability.loggers import get_logger
from mlserve.settings import Batching, Replicas
from mlserve.streaming import Channel

__all__ = ["ReplicaPool"]

logger = get_logger(__name__)

_ONE = BatchLimits(max_size=1)


class ReplicaPool:
    """
    All replicas of one model.

    Args:
        make: Makes the replica of a number, on its device, which tells what became of each
            batch; called again to replace it.
        options: How many there are and how they are restarted.
        batching: For warm-up.
        on_change: Called when a replica gets free, is lost or comes back.
    """

    def __init__(
        self,
        make: Callable[[int, OnReport], ThreadReplica],
        options: Replicas,
        batching: Batching,
        on_change: Callable[[], None],
    ) -> None:
        self._make = make
        self._options = options
        self._batching = batching
        self._on_change = on_change
        self.next_batch = NextBatch()
        """What a replica that serves goes on with when it ends a batch."""
        self._replicas: list[ThreadReplica] = []
        # Those that serve; a replica that loads, ails or is closed is not among them.
        self._serving: list[ThreadReplica] = []
        self._waiting_prepares: deque[tuple[Job, Prepared]] = deque()
        # The lane bounds them. They begin by priority, and within one tenants take turns.
        self._waiting_streams: RequestQueue[Job] = RequestQueue(sys.maxsize)
        self._ways: dict[Job, tuple[Channel[Any] | None, Callable[[], None]]] = {}  # of these
        self._tasks = TaskSet()
        # Of those that may be judged: not of one that is being closed.
        self._breakers: dict[ThreadReplica, Breaker] = {}
        self._judges: dict[ThreadReplica, asyncio.Task[None]] = {}
        self.is_broken = False
        """Whether every replica fails on the handler's own examples."""
        self.reason: str | None = None
        """Why the last replica was lost, for `/ready`; never an exception's text."""

    async def start(self, on_warming: Callable[[], None], timeout_s: float | None) -> int:
        """
        Load and warm up all replicas at once.

        Args:
            on_warming: Called when a replica is loaded.
            timeout_s: How long that may take, in seconds; `None` = no bound.

        Returns:
            With how many examples each was warmed up.

        Raises:
            Exception: What the first failing replica raised.
            TimeoutError: If it took longer; what runs in a thread goes on.
        """
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                return await self._start_all(on_warming)
        except TimeoutError:  # which a hook may raise, too
            if not limit.expired():
                raise
            raise TimeoutError(f"Load and warm-up took longer than {timeout_s:g} s.") from None

    async def _start_all(self, on_warming: Callable[[], None]) -> int:
        self._replicas = [self._make_replica(number) for number in range(self._options.min_count)]
        starts = (replica.start(self._batching, on_warming) for replica in self._replicas)
        results = await asyncio.gather(*starts, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        for replica in self._replicas:
            self._begin_to_serve(replica)
        return max(int(result) for result in results if not isinstance(result, BaseException))

    @property
    def n_serving(self) -> int:
        """How many replicas take work."""
        return len(self._serving)

    @property
    def n_running(self) -> int:
        """How many requests the replicas are at work for, whoever still waits."""
        replicas = self._replicas
        if len(replicas) == 1:
            return replicas[0].n_running
        return sum(replica.n_running for replica in replicas)

    @property
    def is_working(self) -> bool:
        """Whether any replica runs a batch."""
        return any(replica.is_busy for replica in self._serving)

    @property
    def goes_on(self) -> bool:
        """Whether a replica that ends a batch can begin the next one by itself."""
        return any(replica.goes_on for replica in self._serving)

    def idle(self) -> ThreadReplica | None:
        """Give a replica that can run a batch now."""
        for replica in self._serving:
            if not replica.is_busy:
                return replica
        return None

    def prepare(self, job: Job, then: Prepared) -> None:
        """Preprocess a job on the replica that has the least to do beside `infer`."""
        serving = self._serving
        if not serving:
            self._waiting_prepares.append((job, then))
        elif serving[0].prepares_nothing:
            then(job, None)
        else:
            min(serving, key=lambda replica: replica.n_in_hooks).prepare(job, then)

    def open_stream(self, job: Job, channel: Channel[Any] | None, left: Callable[[], None]) -> None:
        """Run a preprocessed stream once a replica has a place; `left` = it waits no longer."""
        self._waiting_streams.reserve()
        self._waiting_streams.put(job)
        self._ways[job] = channel, left
        self._start_streams()

    def forget_stream(self, job: Job) -> None:
        """Drop a stream that still waits; its place is free at once."""
        if self._ways and self._waiting_streams.discard(job):
            _, left = self._ways.pop(job)
            left()

    def refuse_waiting(self, error: MLServeError) -> None:
        """Answer with an error whatever waits for a replica."""
        for job in self._waiting_streams.clear():
            _, left = self._ways.pop(job)
            left()
            job.fail(error)
        while self._waiting_prepares:
            job, then = self._waiting_prepares.popleft()
            then(job, error)

    @property
    def has_health(self) -> bool:
        """Whether the handler has a `health` hook."""
        return any(replica.has_health for replica in self._replicas)

    async def check_health(self) -> None:
        """
        Call the `health` hook of each replica, between two batches.

        Raises:
            Exception: What it raised.
        """
        for replica in self._replicas:
            await replica.check_health()

    def watch_health(self, period_s: float) -> None:
        """Begin to call the `health` hook of each replica, if there is one, every so often."""
        if not self.has_health:
            return
        for number in range(len(self._replicas)):
            self._tasks.spawn(self._keep_healthy(number, period_s))

    def pause(self) -> None:
        """Begin nothing any more; what waits, waits on."""
        self._breakers.clear()
        for replica in list(self._serving):
            self._stop_serving(replica)

    async def wait_idle(self) -> None:
        """Wait until no hook of any request runs."""
        for replica in self._replicas:
            await replica.wait_idle()

    async def close(self) -> None:
        """Wait for what runs and unload every replica."""
        self.pause()
        await self._tasks.close()
        await asyncio.gather(*(replica.close() for replica in self._replicas))
        self._replicas = []

    def _resume(self) -> None:
        while self._waiting_prepares:
            job, then = self._waiting_prepares.popleft()
            self.prepare(job, then)
        self._start_streams()

    def _start_streams(self) -> None:
        while len(self._waiting_streams) > 0:
            most = self._options.max_streams
            free = [r for r in self._serving if r.n_streams < (r.n_places or most)]
            if not free:
                return
            plan = self._waiting_streams.take(_ONE, -math.inf)  # who expires is forgotten anyway
            for job in plan.dead:
                self._ways.pop(job)[1]()
            if not plan.batch:
                continue
            (job,) = plan.batch
            channel, left = self._ways.pop(job)
            left()
            job.stage = "infer" if channel is None else "stream"
            replica = min(free, key=lambda candidate: candidate.n_streams)
            replica.open_stream(job, channel, self._start_streams)

    def _make_replica(self, number: int) -> ThreadReplica:
        replica = self._make(number, self._note_report)
        self._breakers[replica] = Breaker(self._options.restart)
        return replica

    def _begin_to_serve(self, replica: ThreadReplica) -> None:
        self._serving.append(replica)
        if replica.goes_on:
            replica.next_batch = self.next_batch

    def _stop_serving(self, replica: ThreadReplica) -> None:
        self._serving.remove(replica)
        replica.next_batch = None

    def _note_report(self, replica: ThreadReplica, report: BatchReport) -> None:
        breaker = self._breakers.get(replica)
        if breaker is None or not breaker.note(has_failed=report.has_failed):
            return
        if replica not in self._judges:
            judge = self._tasks.spawn(self._judge(replica, breaker))
            self._judges[replica] = judge
            judge.add_done_callback(lambda _: self._judges.pop(replica, None))

    async def _judge(self, replica: ThreadReplica, breaker: Breaker) -> None:
        """Let the handler's own examples say whether a replica is broken, until it is not."""
        while not await self._passes(replica):
            if self._breakers.get(replica) is not breaker:
                return  # it is being closed
            wait_s = breaker.open()
            if replica in self._serving:
                number = replica.context.replica
                self.reason = f"replica {number} fails on the handler's own examples"
                logger.error("replica.breaker.opened", extra={"replica": number})
                self._stop_serving(replica)
                self.is_broken = not self._serving
                self._on_change()
            await asyncio.sleep(wait_s)
        if breaker.is_open and self._breakers.get(replica) is breaker:
            breaker.close()
            self._begin_to_serve(replica)
            self.is_broken = False
            logger.warning("replica.breaker.closed", extra={"replica": replica.context.replica})
            self._on_change()
            self._resume()

    async def _discharge(self, replica: ThreadReplica) -> None:
        """Judge a replica no longer; what its examples do in a thread ends before `close` does."""
        self._breakers.pop(replica, None)
        if judge := self._judges.get(replica):
            judge.cancel()
            await asyncio.gather(judge, return_exceptions=True)

    async def _passes(self, replica: ThreadReplica) -> bool:
        """Try the examples; a handler without any is given the benefit of the doubt."""
        try:
            await replica.try_examples()
        except Exception as exc:
            logger.error("replica.examples.failed", exc_info=exc)
            return False
        return True

    async def _keep_healthy(self, number: int, period_s: float) -> None:
        while True:
            await asyncio.sleep(period_s)
            replica = self._replicas[number]
            try:
                await replica.check_health()
            except Exception:
                logger.exception("replica.health.failed", extra={"model": replica.context.name})
                await self._replace(number, replica)

    async def _replace(self, number: int, ailing: ThreadReplica) -> None:
        """Drain and unload a replica, and bring up another one in its place."""
        self.reason = f"replica {number} is unhealthy and being restarted"
        if ailing in self._serving:  # its breaker may have opened already
            self._stop_serving(ailing)
        self._on_change()
        await self._discharge(ailing)
        await ailing.close()
        replica = await self._restart(number)
        logger.warning("replica.restart.completed", extra={"replica": number})
        self._begin_to_serve(replica)
        self.is_broken = False
        self._on_change()
        self._resume()

    async def _restart(self, number: int) -> ThreadReplica:
        """Load a replica until that succeeds, with growing pauses in between."""
        options = self._options.restart
        for attempt in itertools.count(1):
            replica = self._make_replica(number)
            self._breakers.pop(self._replicas[number], None)
            self._replicas[number] = replica
            try:
                await replica.start(self._batching, _nothing)
            except Exception:
                logger.exception("replica.restart.failed", extra={"attempt": attempt})
                await replica.close()
            else:
                return replica
            wait_s = backoff_s(attempt - 1, options.backoff_s, options.max_backoff_s)
            if attempt >= options.failures:
                self.reason = f"replica {number} could not be restarted in {attempt} attempts"
                self._on_change()
                wait_s = options.max_backoff_s
            await asyncio.sleep(wait_s)
        raise AssertionError("Counting has no end.")

    def __repr__(self) -> str:
        return f"<ReplicaPool {self.n_serving} of {len(self._replicas)} serving>"


def _nothing() -> None:
    """A restarted replica's warm-up does not change the model's state."""
