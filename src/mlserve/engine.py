"""
One model's life: loading, serving, draining, reloading.

A request passes `predict` or `stream` here: admitted if the model is ready and the queue has
room, preprocessed, queued, run, and answered exactly once, whatever happens. Everything in this
file runs on the event loop.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mlserve.answers import Answers, Running
from mlserve.errors import (
    AbandonedError,
    CapacityError,
    ConfigurationError,
    DeadlineExceededError,
    DrainingError,
)
from mlserve.execution.deadlines import Deadlines
from mlserve.execution.worker import TaskSet
from mlserve.job import FutureSink, Job, Sink
from mlserve.lane import Lane
from mlserve.lifecycle import UNLOAD_S, Lifecycle, ModelState
from mlserve.observability.listeners import Listeners
from mlserve.observability.loggers import get_logger
from mlserve.placement import ThreadPlacement
from mlserve.processes.lane import RemoteLane
from mlserve.processes.placement import ProcessPlacement
from mlserve.spec import Factory, ModelSpec
from mlserve.statistics import Statistics, statistics_of
from mlserve.streaming import Channel, ChannelSink, ModelStream

__all__ = ["Engine"]

logger = get_logger(__name__)


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
        is_remote = spec.replicas.placement == "process"
        kind = ProcessPlacement if is_remote else ThreadPlacement
        self.placement = kind(spec, self._note_change, clock)
        """Where the replicas come from."""
        self.n_processes = 1
        """How many processes serve the model over HTTP; set by who starts them."""
        self.listeners = Listeners()
        """Who is told of the model's requests once they have ended."""
        self._deadlines = Deadlines(clock, self._expire)
        self._reloading = asyncio.Lock()
        self._draining_since = -math.inf
        self._load_timeout_s: float | None = None
        self._health_period_s = math.inf
        self._lane = self.placement.open_lane()
        # Lanes that are still to be unloaded: the present one, and those that a reload retired.
        self._lanes: list[Lane | RemoteLane] = []
        self._retiring = TaskSet()
        way = Running(self.run, self.abandon, self._admit, lambda: self._lane, clock)
        self.answers = None if spec.cache is None else Answers(spec, spec.cache, way)
        """Those that are kept, if any are."""

    @property
    def progress(self) -> dict[int, tuple[float, str]]:
        """How far each replica has come in `load`: fraction and note."""
        return self.placement.progress

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
        self.placement.attach()
        self._reloading = asyncio.Lock()
        self._deadlines = Deadlines(self.clock, self._expire)
        if self.answers is not None:
            self.answers.clear()
        self._load_timeout_s, self._health_period_s = load_timeout_s, health_period_s
        self._lane = self.placement.open_lane()
        self._lanes = [self._lane]
        try:
            n_examples = await self._lane.start(self._note_warming, load_timeout_s)
        except Exception as exc:
            if self.lifecycle.can_move(ModelState.FAILED):  # else it is shutting down
                self.lifecycle.move(ModelState.FAILED, f"loading failed with {type(exc).__name__}")
            logger.critical("model.load.failed", exc_info=exc, extra=self._about())
            await self._close(self._lane, UNLOAD_S)
            raise
        if n_examples == 0:
            logger.warning("Model %s has no `examples`: nothing was warmed up.", self.spec.name)
        self._note_warming()
        if not self.lifecycle.can_move(ModelState.READY):
            return  # it is shutting down, and will be unloaded
        self.lifecycle.move(ModelState.READY)
        self._lane.watch_health(health_period_s)
        self._note_change()  # replicas that are loaded may not be connected yet
        about = {**self._about(), "load_s": round(self.clock() - started, 3)}
        logger.info("model.load.completed", extra=about)

    def refuse_new_work(self) -> None:
        """Begin to drain: what is in flight goes on, nothing new is admitted."""
        if self.lifecycle.can_move(ModelState.DRAINING):
            self.lifecycle.move(ModelState.DRAINING)
            self._draining_since = self.clock()

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
                for lane in list(self._lanes):  # nothing new comes to any
                    await lane.wait_idle()
        except TimeoutError:
            for job in self._jobs():
                job.call.cancel()
                job.fail(DrainingError(self.spec.name))

    async def stop(self, drain_s: float) -> None:
        """
        Drain and unload.

        Args:
            drain_s: As for `drain`.
        """
        await self.drain(drain_s)
        await self._retiring.close()
        lanes = list(self._lanes)
        await asyncio.gather(*(self._close(lane, self._unload_s(lane, drain_s)) for lane in lanes))
        if self.lifecycle.can_move(ModelState.STOPPED):
            self.lifecycle.move(ModelState.STOPPED)

    async def reload(self, factory: Factory | None = None) -> None:
        """
        Load new replicas beside the old ones, swap, drain and unload the old.

        Args:
            factory: Gives handlers of the same types; `None` = as the model was added.

        Raises:
            ConfigurationError: If the new handler has other types, the model is an instance, or
                several processes serve it.
            CapacityError: If the model is not loaded yet, or shutting down.
            Exception: What loading raised; the old replicas then go on serving.
        """
        if self.n_processes > 1:
            raise ConfigurationError(
                f"Model `{self.spec.name}` is served by {self.n_processes} HTTP processes, and"
                " `reload` would reach only this one. Restart the server, or run it with"
                " `workers=1`."
            )
        if factory is None and self.spec.is_instance:
            raise ConfigurationError(
                "A handler instance cannot be loaded beside itself. Give `reload` a callable that"
                " makes a new one."
            )
        async with self._reloading:
            self._require_reloadable()
            old, new = self._lane, self.placement.open_lane(factory)
            self._lanes.append(new)
            try:
                # Beside others, those that are loaded do not change the model's state.
                await new.start(lambda: None, self._load_timeout_s)
                self._require_reloadable()  # it may have been shut down meanwhile
            except BaseException:
                await self._close(new, UNLOAD_S)
                raise
            self._lane = new
            if self.answers is not None:
                self.answers.clear()
            new.watch_health(self._health_period_s)
            self._note_change()
            if old in self._lanes:  # one that could not be loaded was closed at once
                await asyncio.wait((self._retiring.spawn(self._retire(old)),))

    async def predict(self, job: Job) -> Any:
        """
        Answer one request.

        Returns:
            The validated response.

        Raises:
            MLServeError: Why there is none.
        """
        return await (self.run(job) if self.answers is None else self.answers.predict(job))

    async def run(self, job: Job) -> Any:
        """Answer one request by the model, whatever is kept; otherwise as `predict`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.begin(job, FutureSink(future))
        try:
            return await future
        finally:
            self.leave(job)
            del future  # an error's traceback holds this frame, and would be held by it

    def begin(self, job: Job, sink: Sink) -> None:
        """
        Have a request answered into a sink; whoever asks calls `leave` once it is.

        Raises:
            MLServeError: If it is not admitted; there is nothing to leave then.
        """
        lane = self._enter(job, sink)
        try:
            lane.predict(job)
        except BaseException:
            self.leave(job)
            raise

    def leave(self, job: Job) -> None:
        """Forget a job that has its answer, or whose caller has left."""
        lane, job.lane, job.sink = job.lane, None, None
        self._deadlines.remove(job)
        job.call.cancel()
        lane.leave(job)

    def stream(self, job: Job) -> ModelStream:
        """
        Begin to stream the chunks of one request.

        Raises:
            MLServeError: If it is not admitted; later errors are raised by the stream.
        """
        channel: Channel[Any] = Channel(asyncio.get_running_loop())
        lane = self._enter(job, ChannelSink(channel))
        try:
            lane.stream(job, channel)
        except BaseException:
            self.leave(job)
            raise
        return ModelStream(job, channel, self.spec.limits, self.clock, self.leave)

    def abandon(self, job: Job) -> None:
        """Free the place of a job whose client has left; a running one is told."""
        job.call.cancel()
        job.fail(AbandonedError())

    def statistics(self) -> Statistics:
        """Say what the model has done and is doing."""
        now = self._lane.figures()
        older = [lane.figures() for lane in self._lanes if lane is not self._lane]
        return statistics_of(self.lifecycle.state.value, now, older)

    @property
    def is_crowded(self) -> bool:
        """Whether a request may be refused: at least a batch waits, or the model does not serve."""
        return self._lane.is_crowded or not self.lifecycle.is_ready

    def refusal(
        self, budget_s: float, priority: int, tenant: str | None = None
    ) -> CapacityError | None:
        """
        Say why a request is refused, before anything is spent on reading it.

        Args:
            budget_s: The time that it will have, in seconds.
            priority: 0 is served first.
            tenant: Whose it is, if that is known.

        Returns:
            Why, if the model does not serve, or has no room or not enough time for it.
        """
        # Under heavy load a turn of the loop is long, and the model would stand idle that long.
        self.placement.catch_up()
        error = self.lifecycle.refusal(self.spec.name)
        if error is not None or self.answers is not None:
            return error  # what is kept needs no room; it is looked for once the body is here
        return self._lane.refusal(
            budget_s=budget_s, left_s=budget_s, priority=priority, tenant=tenant
        )

    def require_room(self, budget_s: float, priority: int, tenant: str | None = None) -> None:
        """Raise what `refusal` gives."""
        _require_none(self.refusal(budget_s, priority, tenant))

    def _admit(self, job: Job, *, is_kept: bool) -> None:
        """Refuse a job while the model does not serve, or has no room unless its answer is kept."""
        self._require_ready()
        if not is_kept:
            _require_none(self._lane.refusal_of(job, is_stream=False))

    def _enter(self, job: Job, sink: Sink) -> Lane | RemoteLane:
        """Admit a job, or raise why not."""
        self._require_ready()
        lane = self._lane
        _require_none(lane.enter(job, is_stream=isinstance(sink, ChannelSink)))
        job.sink, job.lane = sink, lane
        self._deadlines.add(job)
        return lane

    def _jobs(self) -> list[Job]:
        """List what is in flight."""
        return [job for lane in self._lanes for job in lane.jobs]

    def _expire(self, job: Job) -> None:
        """End a job at its deadline."""
        lane = job.lane
        job.call.cancel()  # before it is asked where it is: from here on nobody begins it
        job.fail(DeadlineExceededError(lane.stage_of(job), job.timeout_s))
        lane.forget(job)

    def _require_ready(self) -> None:
        _require_none(self.lifecycle.refusal(self.spec.name))

    def _require_reloadable(self) -> None:
        if self.lifecycle.state is not ModelState.FAILED:
            self._require_ready()

    async def _retire(self, lane: Lane | RemoteLane) -> None:
        """
        Unload a lane that gets nothing new, once what it has in flight is done.

        A task of the engine: whoever asked for the reload may leave, and a shutdown takes over.
        """
        limits = self.spec.limits
        with suppress(TimeoutError):  # a stream that was never closed, or a hook that hangs
            async with asyncio.timeout(max(limits.timeout_s, limits.stream_timeout_s)):
                await lane.wait_idle()
        await self._close(lane, UNLOAD_S)

    async def _close(self, lane: Lane | RemoteLane, timeout_s: float) -> None:
        """Unload a lane's replicas; a hook that does not return by then is left alone."""
        try:
            async with asyncio.timeout(timeout_s):
                await lane.close()
        except TimeoutError:
            logger.error("model.unload.abandoned", extra=self._about())
        if lane in self._lanes:
            self._lanes.remove(lane)

    def _unload_s(self, lane: Lane | RemoteLane, drain_s: float) -> float:
        """Say how long a lane's hooks, then `unload`, may take at the shutdown, in seconds."""
        # Hooks that serve have what is left of the drain; a `load` that runs has nothing to finish.
        left_s = drain_s - (self.clock() - self._draining_since) if lane.n_serving else 0.0
        return max(left_s, min(drain_s, UNLOAD_S), 1.0)

    def _note_warming(self) -> None:
        if self.lifecycle.state is ModelState.LOADING:
            self.lifecycle.move(ModelState.WARMING)

    def _note_change(self) -> None:
        lane, life = self._lane, self.lifecycle
        if lane.n_serving > 0:
            state = ModelState.READY
        else:
            state = ModelState.RESTARTING if lane.is_recovering else ModelState.FAILED
        if life.state is state:
            life.reason = lane.reason or life.reason if state is not ModelState.READY else None
        elif (life.admits or life.state is ModelState.FAILED) and life.can_move(state):
            life.move(state, None if state is ModelState.READY else lane.reason)
        for opened in self._lanes:
            opened.note_change()

    def _about(self) -> dict[str, Any]:
        return {"model": self.spec.name, "version": self.spec.version}

    def __repr__(self) -> str:
        life, n = self.lifecycle.state, len(self._jobs())
        return f"<Engine {self.spec.name}/{self.spec.version} {life}, {n} in flight>"


def _require_none(error: CapacityError | None) -> None:
    """Raise an error if there is one; no frame may hold it, which its traceback holds in turn."""
    if error is not None:
        try:
            raise error
        finally:
            del error
