"""
One set of replicas with the queue in front of it.

A model has one lane; a reload opens another beside it, so that what was preprocessed by the old
handler is run by the old handler. Lives on the event loop.
"""

import asyncio
import math
from collections.abc import Callable, Collection
from typing import Any

from mlserve.batching.admission import Admission
from mlserve.batching.batcher import Batcher
from mlserve.batching.queue import RequestQueue
from mlserve.batching.shares import Shares, most_kept
from mlserve.errors import CapacityError, MLServeError, ModelFailedError
from mlserve.execution.pool import ReplicaPool
from mlserve.job import Job
from mlserve.observability.metrics import batch_metrics
from mlserve.spec import ModelSpec
from mlserve.statistics import Figures
from mlserve.streaming import Channel

__all__ = ["Lane"]

_FIRST_CAPACITY = 1024


class Lane:
    """
    Leads jobs through preprocessing and queue to the replicas of one pool.

    Args:
        spec: The model.
        pool: The replicas; the lane starts and closes them.
        clock: Gives monotonic seconds.
    """

    def __init__(self, spec: ModelSpec, pool: ReplicaPool, clock: Callable[[], float]) -> None:
        self.pool = pool
        metrics = batch_metrics(spec.name, spec.version)
        limits = spec.limits
        max_queue_size = None if limits.max_queue_size == "auto" else limits.max_queue_size
        first = _FIRST_CAPACITY if max_queue_size is None else max_queue_size
        self.queue: RequestQueue[Job] = RequestQueue(first)
        self.batcher = Batcher(spec.batching, pool, self.queue, clock, metrics)
        self._admission = Admission(
            spec.name, max_queue_size, limits.timeout_s, spec.batching.max_size
        )
        self._spec = spec
        self._is_stepped = spec.contract.is_stepped
        # Where nothing has to be done before, a request is queued as soon as it is admitted.
        self._queues_at_once = spec.contract.prepares_nothing and not self._is_stepped
        self._clock = clock
        # Jobs that hold a reserved place: being preprocessed, or streams that wait for a replica.
        self._reserved: set[Job] = set()
        # Those of them that `infer` will never be asked for.
        self._reserved_streams: set[Job] = set()
        self._jobs: set[Job] = set()
        self._shares = Shares()  # of them
        # With fewer waiting, whoever comes is admitted.
        self._n_roomy = min(spec.batching.max_size, first - most_kept(first))
        self._idle = asyncio.Event()
        self._idle.set()
        self._n_requests = self._n_refused = 0

    @property
    def n_serving(self) -> int:
        """How many replicas take work."""
        return self.pool.n_serving

    @property
    def is_recovering(self) -> bool:
        """Whether requests may wait although no replica serves; threads are not waited for."""
        return False

    @property
    def reason(self) -> str | None:
        """Why the last replica was lost, for `/ready`; never an exception's text."""
        return self.pool.reason

    @property
    def jobs(self) -> Collection[Job]:
        """What is in flight here."""
        return self._jobs

    @property
    def is_crowded(self) -> bool:
        """Whether a request may be refused: at least a batch waits."""
        return self.queue.occupied >= self._n_roomy

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
        return await self.pool.start(on_warming, timeout_s)

    def watch_health(self, period_s: float) -> None:
        """Begin to call the `health` hook of each replica, if there is one, every so often."""
        self.pool.watch_health(period_s)

    async def close(self) -> None:
        """Start no further batch, wait for what runs and unload every replica."""
        self.batcher.close()
        await self.pool.close()

    def figures(self) -> Figures:
        """Say what was done and is being done here."""
        batcher = self.batcher
        self._learn()
        return Figures(
            replicas=self.pool.n_serving,
            in_flight=len(self._jobs),
            queued=self.queue.occupied,
            running=self.pool.n_running,
            queue_capacity=self.queue.capacity,
            requests=self._n_requests,
            refused=self._n_refused,
            batches=batcher.n_batches,
            batched=batcher.n_batched,
            splits=batcher.n_splits,
            out_of_memory=batcher.n_out_of_memory,
        )

    def refusal(
        self, *, budget_s: float, left_s: float, priority: int, tenant: str | None = None
    ) -> CapacityError | None:
        """
        Say why a request is refused, if there is no room or no time for it.

        Args:
            budget_s: The whole time of the request, in seconds.
            left_s: What is left of it, in seconds.
            priority: 0 is served first.
            tenant: Whose it is; `None` = nobody's, or not known yet.

        Returns:
            `QueueFullError` if no place is free, `OverloadedError` if its turn would come too late.
        """
        admission, queue = self._admission, self.queue
        self._learn()
        n_waiting = queue.occupied
        n_ahead = queue.ahead_of(priority) - len(self._reserved_streams)
        n_total, shares = len(self._jobs), self._shares
        error = admission.error(
            n_waiting=n_waiting,
            n_ahead=shares.turns_ahead(tenant, n_ahead=n_ahead, n_total=n_total),
            budget_s=budget_s,
            left_s=left_s,
            n_kept=shares.kept_from(tenant, capacity=queue.capacity, n_total=n_total),
        )
        if error is not None:
            self._n_refused += 1
        return error

    def _learn(self) -> None:
        """Bound the queue by what batches have cost so far."""
        self._admission.learn(self.batcher.cost_model, max(1, self.pool.n_serving))
        capacity = self.queue.capacity = self._admission.capacity
        self._n_roomy = min(self._spec.batching.max_size, capacity - most_kept(capacity))

    def refusal_of(self, job: Job, *, is_stream: bool) -> CapacityError | None:
        """Say why a job is refused, as `refusal` does."""
        # How long streams take is not known, so that they are refused by number only.
        is_stream = is_stream or self._is_stepped
        left_s = math.inf if is_stream else job.call.remaining_s
        budget_s = math.inf if is_stream else job.timeout_s
        return self.refusal(
            budget_s=budget_s, left_s=left_s, priority=job.priority, tenant=job.tenant
        )

    def enter(self, job: Job, *, is_stream: bool) -> CapacityError | None:
        """Reserve a place for a job, or say why it is refused."""
        # With few waiting there is room for anybody, whatever has been learned.
        if self.queue.occupied >= self._n_roomy:
            error = self.refusal_of(job, is_stream=is_stream)
            if error is not None:
                return error
        self._n_requests += 1
        self.reserve(job, is_stream=is_stream)
        return None

    def reserve(self, job: Job, *, is_stream: bool) -> None:
        """Give a place to a job that was admitted elsewhere; `predict` or `stream` comes next."""
        if is_stream or not self._queues_at_once:
            self.queue.reserve()
            self._reserved.add(job)
            if is_stream or self._is_stepped:
                self._reserved_streams.add(job)
        if not self._jobs:
            self._idle.clear()
        self._jobs.add(job)
        self._shares.enter(job.tenant)

    def predict(self, job: Job) -> None:
        """Preprocess and queue a job that has a place; its sink gets the answer."""
        if self._queues_at_once:
            if self._goes_on(job, None):
                self.batcher.submit(job, is_reserved=False)
        elif self._is_stepped:
            self._run_alone(job, None)
        else:
            self.pool.prepare(job, self._queue_prepared)

    def stream(self, job: Job, channel: Channel[Any]) -> None:
        """Preprocess a job that has a place, and run it into a channel when a replica is free."""
        self._run_alone(job, channel)

    def _run_alone(self, job: Job, channel: Channel[Any] | None) -> None:
        """Run a job that is part of no batch."""

        def left() -> None:
            times, at = job.times, job.enqueued_at
            times.queue_at, times.queue_s = at, self._clock() - at
            self._release(job)

        def prepared(job: Job, error: MLServeError | None) -> None:
            if self._goes_on(job, error):
                job.stage = "queue"
                job.enqueued_at = self._clock()
                self.pool.open_stream(job, channel, left)

        self.pool.prepare(job, prepared)

    def forget(self, job: Job) -> None:
        """Free the place of a job that nobody waits for; one that was taken up ends by itself."""
        self._release(job)
        self.batcher.withdraw()
        self.queue.discard(job)
        self.pool.forget_stream(job)

    def leave(self, job: Job) -> None:
        """Forget a job that has its answer, or whose caller has left."""
        if job.stage != "postprocess":  # else it left its place long ago
            self.forget(job)
        if job in self._jobs:
            self._jobs.remove(job)
            self._shares.leave(job.tenant)
        if not self._jobs:
            self._idle.set()

    def stage_of(self, job: Job) -> str:
        """Say where a job is, and leave it there: `preprocess`, `queue`, `infer`, …."""
        self.batcher.withdraw()
        return job.stage

    async def wait_idle(self) -> None:
        """Wait until nobody waits for anything that is here."""
        await self._idle.wait()

    def note_change(self) -> None:
        """Look at the replicas: go on with those that are free, refuse what none will take."""
        if self.pool.is_broken:
            error = self._broken()
            self.batcher.withdraw()
            for job in self.queue.clear():
                job.fail(error)
            self.pool.refuse_waiting(error)
        self.batcher.wake()

    def _broken(self) -> ModelFailedError:
        return ModelFailedError(self._spec.name, self.pool.reason or "it broke down")

    def _queue_prepared(self, job: Job, error: MLServeError | None) -> None:
        if self._goes_on(job, error):
            self._reserved.discard(job)
            self.batcher.submit(job)

    def _goes_on(self, job: Job, error: MLServeError | None) -> bool:
        """Say whether a job may wait for a replica now; else it is answered and has no place."""
        if error is None and self.pool.is_broken:
            error = self._broken()
        if error is not None:
            job.fail(error)
        if error is not None or job.abandoned:
            self._release(job)
            return False
        return True

    def _release(self, job: Job) -> None:
        if job in self._reserved:
            self._reserved.discard(job)
            self._reserved_streams.discard(job)
            self.queue.release()

    def __repr__(self) -> str:
        return f"<Lane {self.queue!r} {self.pool!r}>"
