"""
Brings waiting requests and free replicas together. Lives on the event loop; nothing polls.

It acts when a request is queued, a replica gets free or a wait is over, and asks the pure parts
what to do: `queue` which requests, `policy` whether now.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Protocol

from mlserve.batching.cost_model import CostModel
from mlserve.batching.memory_cap import MemoryCap
from mlserve.batching.next_batch import NextBatch
from mlserve.batching.policy import ArrivalRate, Rule, Situation, hold_s, wait_for_arrivals
from mlserve.batching.queue import BatchLimits, Plan, RequestQueue
from mlserve.batching.report import BatchReport
from mlserve.batching.returns import Returns
from mlserve.errors import DeadlineExceededError
from mlserve.job import Job
from mlserve.observability.loggers import get_logger
from mlserve.observability.metrics import BatchMetrics
from mlserve.observability.tracing import trace_batch
from mlserve.settings import Batching

__all__ = ["BatchRunner", "Batcher", "Pool"]

logger = get_logger(__name__)

_cost_of, _traceparent_of = attrgetter("cost"), attrgetter("call.traceparent")
_TIMER_GRAIN_S = 0.0008  # uvloop's timers count in milliseconds


class BatchRunner(Protocol):
    """A replica as the batcher sees it."""

    def run(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        """Run a batch; call `done` on the event loop with what became of it."""


class Pool(Protocol):
    """The replicas as the batcher sees them."""

    next_batch: NextBatch
    """What a replica that ends a batch goes on with, if it can."""

    def idle(self) -> BatchRunner | None:
        """Give a replica that can run a batch now."""

    @property
    def is_working(self) -> bool:
        """Whether any replica runs a batch."""

    @property
    def goes_on(self) -> bool:
        """Whether a replica that ends a batch can begin the next one by itself."""


class Batcher:
    """
    The queue of one model and what empties it.

    Args:
        batching: The model's options.
        pool: Where batches run.
        queue: The waiting requests.
        clock: Gives monotonic seconds.
        metrics: Count the batches.
    """

    def __init__(
        self,
        batching: Batching,
        pool: Pool,
        queue: RequestQueue[Job],
        clock: Callable[[], float],
        metrics: BatchMetrics,
    ) -> None:
        self.cost_model = CostModel()
        self.n_batches = 0
        """How many batches ran."""
        self.n_batched = 0
        """How many requests were in the batches that ran."""
        self.n_splits = 0
        """How often a failing batch was split."""
        self.n_out_of_memory = 0
        """How often memory ran out."""
        self.cap = MemoryCap(batching.max_cost or batching.max_size)
        """The largest batch that memory allows, in requests or in cost."""
        self._batching = batching
        self._metrics = metrics
        self._pool = pool
        self._queue = queue
        self._clock = clock
        self._may_change = batching.target_latency_s is not None  # the limits, with each batch
        self._limits = self._find_limits()
        self._arrivals = ArrivalRate(8 * batching.max_wait_s)
        self._returns = Returns()
        self._rules: list[Rule] = []
        if batching.max_wait_s > 0:
            self._rules.append(wait_for_arrivals(batching.max_wait_s))
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None

    def submit(self, job: Job, *, is_reserved: bool = True) -> None:
        """Queue a preprocessed job, mostly into the place that was reserved for it."""
        now = self._clock()
        if self._rules:
            in_company = len(self._queue) > 0 or self._pool.is_working
            self._arrivals.observe(now, in_company=in_company)
        self._returns.note_arrival(now)
        job.enqueued_at = now
        job.stage = "queue"
        self._queue.put(job, is_reserved=is_reserved)
        if self._soon is None:
            self.wake()

    def withdraw(self) -> None:
        """
        Have no replica take up what is laid out: it may be about to change.

        From here on the stage of each job is true, and what waits in the queue does not run.
        """
        if self._pool.next_batch.laid_out is not None:
            self._pool.next_batch.withdraw()
            self._note_taken_up()
            self.wake()

    def wake(self) -> None:
        """Look for work once the event loop has seen what else has just arrived."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._dispatch_soon)

    def close(self) -> None:
        """Stop looking for work."""
        self.withdraw()
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._soon = None

    def _dispatch_soon(self) -> None:
        self._soon = None
        self._dispatch()

    def _dispatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue, next_batch = self._queue, self._pool.next_batch
        while len(queue) > 0 and (runner := self._pool.idle()) is not None:
            if next_batch.laid_out is not None:
                next_batch.withdraw()
                self._note_taken_up()
                continue
            now = self._clock()
            if self._may_change:
                self._limits = self._find_limits()
            plan = queue.plan(self._limits, now)
            batch, is_full, dead = plan
            if (self._rules or self._returns.n_expected(self._limits.max_size)) and (
                not is_full and batch and (wait_s := self._wait_s(plan, now)) > 0
            ):
                self._look_again(wait_s)
                return
            queue.remove(plan)
            if dead:
                self._answer_dead(dead)
            if batch:
                self._returns.note_sent()
                self._start(runner, batch, now)
            elif not dead:  # a key whose hash has changed: nothing can be taken
                return
        if len(queue) >= self._limits.max_size or next_batch.laid_out is not None:
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Lay out a batch that nothing which comes will change, while all replicas are busy."""
        queue, limits, next_batch = self._queue, self._limits, self._pool.next_batch
        if next_batch.laid_out is not None:
            if not queue.is_plain:
                self.withdraw()
        elif (
            self._pool.goes_on
            and queue.is_plain
            and limits.max_cost is None
            and not self._may_change
        ):
            plan = queue.plan(limits, self._clock())
            if plan.is_full and not plan.dead:
                next_batch.lay_out(plan, partial(self._note_done, plan.batch))

    def _note_taken_up(self) -> None:
        """Take out of the queue what a replica has taken up."""
        taken = self._pool.next_batch.look()
        if taken is not None:
            self._queue.remove(taken.plan)
            self._returns.note_sent()
            _begin(taken.plan.batch, taken.begun_at)

    def _look_again(self, wait_s: float) -> None:
        if wait_s < _TIMER_GRAIN_S:  # the loop turns meanwhile, and takes in who comes
            self.wake()
        else:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._dispatch)

    def _find_limits(self) -> BatchLimits:
        options = self._batching
        max_size, max_cost = options.max_size, options.max_cost
        if options.target_latency_s is not None:
            max_size = self.cost_model.largest_within(options.target_latency_s, max_size)
        if max_cost is None:
            max_size = min(max_size, self.cap.limit)
        else:
            max_cost = self.cap.limit
        return BatchLimits(max_size=max_size, max_cost=max_cost, padded=options.padded)

    def _size_of(self, jobs: Sequence[Job]) -> int:
        """Say how large a batch is in the unit of the cap."""
        if self._batching.max_cost is None:
            return len(jobs)
        costs = [job.cost for job in jobs]
        return max(costs) * len(costs) if self._batching.padded else sum(costs)

    def _wait_s(self, plan: Plan[Job], now: float) -> float:
        n_waiting = len(plan.batch)
        fixed_s, each_s = self.cost_model.line
        held_s = self._returns.hold_s(
            now, n_waiting=n_waiting, n_room=self._limits.max_size - n_waiting, fixed_s=fixed_s
        )
        situation = Situation(
            now=now,
            n_waiting=n_waiting,
            is_full=plan.is_full,
            oldest_at=plan.oldest_at,
            arrivals_per_s=self._arrivals.per_second(now),
            fixed_cost_s=fixed_s,
            cost_each_s=each_s,
        )
        return max(held_s, hold_s(situation, self._rules))

    def _answer_dead(self, dead: list[Job]) -> None:
        for job in dead:
            job.call.cancel()
            job.fail(DeadlineExceededError("queue", job.timeout_s))

    def _start(self, runner: BatchRunner, batch: list[Job], now: float) -> None:
        _begin(batch, now)
        runner.run(batch, partial(self._note_done, batch))

    def _note_done(self, batch: list[Job], report: BatchReport) -> None:
        if self._pool.next_batch.laid_out is not None:
            self._note_taken_up()
        if report.too_large:
            self.withdraw()
            self.cap.lower(self._size_of(report.too_large))
            self._limits = self._find_limits()
        self._returns.note_done(self._clock(), len(batch), self.cost_model.line[0])
        if self._queue:
            self._dispatch()
        self.n_batches += 1
        self.n_batched += len(batch)
        costs = list(map(_cost_of, batch))
        traced = list(filter(None, map(_traceparent_of, batch)))
        size = self._size_of(batch) if self.cap.is_lowered else 0
        # The answers go out first.
        asyncio.get_running_loop().call_soon(self._account, costs, traced, size, report)

    def _account(self, costs: list[int], traced: list[str], size: int, report: BatchReport) -> None:
        """Tell of a batch, and learn from it."""
        self._metrics.note_batch(costs, is_padded=self._batching.padded)
        if traced:
            trace_batch(*self._metrics.labels, traced, costs, report)
        if report.n_splits or report.n_out_of_memory:
            self.n_splits += report.n_splits
            self.n_out_of_memory += report.n_out_of_memory
            self._metrics.note_troubles(
                n_splits=report.n_splits,
                n_isolated=report.n_isolated,
                n_out_of_memory=report.n_out_of_memory,
            )
        if not report.n_splits:  # what was run several times says nothing of what it costs
            self.cost_model.observe(len(costs), report.infer_s)
            if size and not report.has_failed:
                self.cap.note_fit(size)
                self._limits = self._find_limits()

    def __repr__(self) -> str:
        return f"<Batcher {self._queue!r}>"


def _begin(batch: list[Job], now: float) -> None:
    n = len(batch)
    for job in batch:
        job.stage = "infer"
        times = job.times
        times.queue_at = began = job.enqueued_at
        times.queue_s = now - began
        times.batch_size = n
