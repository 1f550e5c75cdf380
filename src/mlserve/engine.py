"""
One model's life: loading, serving, draining, reloading.

A request passes `predict` or `stream` here: admitted if the model is ready and the queue has
room, preprocessed, queued, run, and answered exactly once, whatever happens. Everything in this
file runs on the event loop.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlserve.batching.batcher import Batcher
from mlserve.batching.cost_model import queue_capacity
from mlserve.batching.queue import RequestQueue
from mlserve.errors import (
    AbandonedError,
    ConfigurationError,
    DeadlineExceededError,
    DrainingError,
    MLServeError,
    ModelFailedError,
    ModelNotReadyError,
    QueueFullError,
)
from mlserve.execution.placement import ThreadPlacement
from mlserve.execution.pool import ReplicaPool
from mlserve.job import FutureSink, Job
from mlserve.lifecycle import Lifecycle, ModelState
from mlserve.spec import Factory, ModelSpec
from mlserve.streaming import Channel, ChannelSink, ModelStream

__all__ = ["Engine", "Statistics"]

logger = logging.getLogger(__name__)

_UNLOAD_AFTER_FAILURE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a model has done and is doing."""

    state: str
    """Where it is in its life, such as `ready`."""
    replicas: int
    """How many replicas serve."""
    in_flight: int
    """How many requests were accepted and not answered yet."""
    queued: int
    """How many of them wait."""
    queue_capacity: int
    """How many may wait."""
    requests: int
    """How many requests were accepted."""
    batches: int
    """How many batches were run."""
    mean_batch_size: float
    """How many requests a batch held on average; 0 before the first."""


class Engine:
    """
    One model: its replicas, its queue and the requests in flight.

    Args:
        spec: The model.
        clock: Gives monotonic seconds.
    """

    def __init__(self, spec: ModelSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self.clock = clock
        self.lifecycle = Lifecycle()
        self._placement = ThreadPlacement(spec, self._note_change, clock)
        self._queue: RequestQueue[Job] = RequestQueue(self._capacity_at_first())
        self._jobs: set[Job] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._n_requests = 0
        self._health_period_s = math.inf
        self._pool = self._placement.make_pool()
        self._batcher = Batcher(spec.batching, self._pool, self._queue, clock)

    @property
    def progress(self) -> dict[int, tuple[float, str]]:
        """How far each replica has come in `load`: fraction and note."""
        return self._placement.progress

    async def start(self, *, load_timeout_s: float | None, health_period_s: float) -> None:
        """
        Load and warm up all replicas, then serve.

        Raises:
            Exception: What `load` or warm-up raised; the model is then `failed`.
            TimeoutError: If that took longer than `load_timeout_s`.
        """
        self.lifecycle.move(ModelState.LOADING)
        started = self.clock()
        # What belongs to an event loop is made here: an engine may be started again on another.
        self._placement.attach()
        self._idle = asyncio.Event()
        self._idle.set()
        self._pool = self._placement.make_pool()
        self._batcher.use(self._pool)
        try:
            async with asyncio.timeout(load_timeout_s):
                n_examples = await self._pool.start(self._note_warming)
        except Exception as exc:
            self.lifecycle.move(ModelState.FAILED, f"loading failed with {type(exc).__name__}")
            logger.critical("model.load.failed", exc_info=exc, extra=self._about())
            await self._close(self._pool, _UNLOAD_AFTER_FAILURE_S)
            raise
        if n_examples == 0:
            logger.warning("Model %s has no `examples`: nothing was warmed up.", self.spec.name)
        self._note_warming()
        self.lifecycle.move(ModelState.READY)
        self._health_period_s = health_period_s
        self._pool.watch_health(health_period_s)
        about = {**self._about(), "load_s": round(self.clock() - started, 3)}
        logger.info("model.load.completed", extra=about)
        self._batcher.wake()

    def refuse_new_work(self) -> None:
        """Begin to drain: what is in flight goes on, nothing new is admitted."""
        if self.lifecycle.can_move(ModelState.DRAINING):
            self.lifecycle.move(ModelState.DRAINING)

    async def drain(self, drain_s: float) -> None:
        """
        Refuse new work and wait until nothing is in flight.

        Args:
            drain_s: How long requests in flight may still take, in seconds; the rest is answered
                with `draining`.
        """
        self.refuse_new_work()
        try:
            async with asyncio.timeout(drain_s):
                await self._idle.wait()
        except TimeoutError:
            for job in list(self._jobs):
                self._give_up(job, DrainingError(self.spec.name))

    async def stop(self, drain_s: float) -> None:
        """
        Drain and unload.

        Args:
            drain_s: As for `drain`.
        """
        await self.drain(drain_s)
        self._batcher.close()
        await self._close(self._pool, max(drain_s, 1.0))
        if self.lifecycle.can_move(ModelState.STOPPED):
            self.lifecycle.move(ModelState.STOPPED)

    async def reload(self, factory: Factory | None = None) -> None:
        """
        Load new replicas beside the old ones, swap, drain and unload the old.

        Args:
            factory: Gives handlers of the same types; `None` = as the model was added.

        Raises:
            ConfigurationError: If the new handler has other types, or the model is an instance.
            Exception: What loading raised; the old replicas then go on serving.
        """
        if factory is None and self.spec.is_instance:
            raise ConfigurationError(
                "A handler instance cannot be loaded beside itself. Give `reload` a new one."
            )
        new = self._placement.make_pool(factory)
        try:
            await new.start(_nothing)
        except BaseException:
            await self._close(new, _UNLOAD_AFTER_FAILURE_S)
            raise
        old, self._pool = self._pool, new
        self._batcher.use(new)
        new.adopt(old.retire())
        new.watch_health(self._health_period_s)
        self._note_change()
        await old.close()

    async def predict(self, job: Job) -> Any:
        """
        Answer one request.

        Returns:
            The validated response.

        Raises:
            MLServeError: Why there is none.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        timer = self._enter(job, FutureSink(future))
        self._pool.prepare(job, self._queue_prepared)
        try:
            return await future
        except asyncio.CancelledError:
            self.abandon(job)
            raise
        finally:
            timer.cancel()
            self._leave(job)

    def stream(self, job: Job) -> ModelStream:
        """
        Begin to stream the chunks of one request.

        Raises:
            MLServeError: If it is not admitted; later errors are raised by the stream.
        """
        channel: Channel[Any] = Channel(asyncio.get_running_loop())
        timer = self._enter(job, ChannelSink(channel))

        def left_queue() -> None:
            job.times.queue_s = self.clock() - job.enqueued_at
            self._queue.release()

        def prepared(job: Job, error: MLServeError | None) -> None:
            if error is None and not job.abandoned:
                job.stage = "queue"
                job.enqueued_at = self.clock()
                self._pool.open_stream(job, channel, left_queue)
                return
            self._queue.release()
            job.fail(error or AbandonedError())

        def closed(job: Job) -> None:
            timer.cancel()
            self._pool.forget_stream(job)
            self._leave(job)

        self._pool.prepare(job, prepared)
        return ModelStream(job, channel, self.spec.limits, self.clock, closed)

    def abandon(self, job: Job) -> None:
        """Free the place of a job whose client has left; a running one is told."""
        self._give_up(job, AbandonedError())

    def statistics(self) -> Statistics:
        """Say what the model has done and is doing."""
        n_batches = self._batcher.cost_model.n_observed
        return Statistics(
            state=self.lifecycle.state.value,
            replicas=self._pool.n_serving,
            in_flight=len(self._jobs),
            queued=self._queue.occupied,
            queue_capacity=self._queue.capacity,
            requests=self._n_requests,
            batches=n_batches,
            mean_batch_size=self._batcher.n_batched / n_batches if n_batches else 0.0,
        )

    def _enter(self, job: Job, sink: FutureSink | ChannelSink) -> asyncio.TimerHandle:
        """Admit a job, or raise why not; the timer ends it at its deadline."""
        self._require_ready()
        self._queue.capacity = self._capacity()
        if not self._queue.reserve():
            raise QueueFullError(self.spec.name, self._queue.capacity)
        job.sink = sink
        self._n_requests += 1
        self._jobs.add(job)
        self._idle.clear()
        left_s = max(0.0, job.deadline - self.clock())
        return asyncio.get_running_loop().call_later(left_s, self._expire, job)

    def _leave(self, job: Job) -> None:
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()

    def _queue_prepared(self, job: Job, error: MLServeError | None) -> None:
        if error is None and not job.abandoned:
            self._batcher.submit(job)
            return
        self._queue.release()
        job.fail(error or AbandonedError())

    def _expire(self, job: Job) -> None:
        self._give_up(job, DeadlineExceededError(job.stage, job.timeout_s))

    def _give_up(self, job: Job, error: MLServeError) -> None:
        job.call.cancel()
        self._queue.discard(job)
        job.fail(error)

    def _require_ready(self) -> None:
        life = self.lifecycle
        if life.is_ready:
            return
        if life.state in (ModelState.DRAINING, ModelState.STOPPED):
            raise DrainingError(self.spec.name)
        if life.state is ModelState.FAILED:
            raise ModelFailedError(self.spec.name, life.reason or "it broke down")
        raise ModelNotReadyError(self.spec.name, life.state)

    async def _close(self, pool: ReplicaPool, timeout_s: float) -> None:
        """Unload replicas; a hook that does not return by then is left alone."""
        try:
            async with asyncio.timeout(timeout_s):
                await pool.close()
        except TimeoutError:
            logger.error("model.unload.abandoned", extra=self._about())

    def _note_warming(self) -> None:
        if self.lifecycle.state is ModelState.LOADING:
            self.lifecycle.move(ModelState.WARMING)

    def _note_change(self) -> None:
        if self._pool.n_serving == 0 and self.lifecycle.is_ready:
            self.lifecycle.move(ModelState.FAILED, self._pool.reason)
        elif self._pool.n_serving > 0 and self.lifecycle.state is ModelState.FAILED:
            self.lifecycle.move(ModelState.READY)
        self._batcher.wake()

    def _capacity_at_first(self) -> int:
        size = self.spec.limits.max_queue_size
        return 1024 if size == "auto" else size

    def _capacity(self) -> int:
        if self.spec.limits.max_queue_size != "auto":
            return self.spec.limits.max_queue_size
        return queue_capacity(
            self._batcher.cost_model,
            max_size=self.spec.batching.max_size,
            n_replicas=max(1, self._pool.n_serving),
            timeout_s=self.spec.limits.timeout_s,
        )

    def _about(self) -> dict[str, Any]:
        return {"model": self.spec.name, "version": self.spec.version}

    def __repr__(self) -> str:
        life = self.lifecycle.state
        return f"<Engine {self.spec.name}/{self.spec.version} {life}, {len(self._jobs)} in flight>"


def _nothing() -> None:
    """Replicas that are loaded beside others do not change the model's state."""
