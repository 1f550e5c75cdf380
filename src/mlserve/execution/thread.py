"""
A replica in threads of this process.

One thread runs `load`, `warmup`, `infer`, `health` and `unload`; a second one runs the hooks of
single requests beside it, so that the model is never kept waiting by them; every stream has a
thread of its own. Async hooks run on the event loop instead. The methods here are called on the
event loop.
"""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from mlserve.batching.next_batch import NextBatch
from mlserve.batching.report import BatchReport
from mlserve.errors import MLServeError
from mlserve.execution.beside import HooksBeside, Prepared
from mlserve.execution.pipeline import Outcome, Pipeline, as_answer, as_model_error
from mlserve.execution.stages import is_cancelling, run_here, run_mixed
from mlserve.execution.stepper import Entry, Stepper
from mlserve.execution.stream_runner import run_async_stream, run_stream
from mlserve.execution.worker import Mailbox, TaskSet, Worker
from mlserve.handler import Context, ModelHandler
from mlserve.job import Job
from mlserve.observability.loggers import get_logger
from mlserve.observability.metrics import batch_metrics
from mlserve.settings import Batching
from mlserve.stepped import SteppedHandler
from mlserve.streaming import Channel

__all__ = ["OnReport", "Prepared", "ThreadReplica"]

logger = get_logger(__name__)


class ThreadReplica:
    """
    One copy of the handler and the threads that run it.

    Args:
        handler: The handler; `load` has not been called.
        pipeline: The stages that call its hooks.
        context: Where it runs; becomes `handler.context`.
        mailbox: The way back to the event loop.
        on_report: Told, on the event loop, what became of each batch.
    """

    def __init__(
        self,
        handler: ModelHandler[Any, Any, Any],
        pipeline: Pipeline,
        context: Context,
        mailbox: Mailbox,
        on_report: "OnReport",
    ) -> None:
        self.context = context
        self.n_streams = 0
        """How many streams run."""
        self.n_in_batch = 0
        """How many requests are in the batch that runs, until its thread returns."""
        self.next_batch: NextBatch | None = None
        """What the thread that ends a batch goes on with, while the replica serves."""
        self._handler = handler
        self._pipeline = pipeline
        self.prepares_nothing = pipeline.prepares_nothing
        """Whether there is no hook before the queue."""
        self._infer_hook = pipeline.contract.hooks["infer"]
        self._mailbox = mailbox
        self._on_report = on_report
        name = f"mlserve-{context.name}-{context.replica}"
        self._main = Worker(name, mailbox)
        self._beside = HooksBeside(handler, pipeline, f"{name}-hooks", mailbox, self._note_idle)
        self._tasks = TaskSet()
        self._idle: asyncio.Event | None = None  # while somebody waits for it
        self._stepper: Stepper | None = None
        self._load_begun = False
        self._closing: asyncio.Task[None] | None = None
        handler.context = context

    @property
    def n_in_hooks(self) -> int:
        """How many requests are in a hook before or after `infer`."""
        return self._beside.n_running

    @property
    def is_busy(self) -> bool:
        """Whether a batch runs; true until its thread returns, whoever still waits."""
        return self.n_in_batch > 0

    @property
    def goes_on(self) -> bool:
        """Whether the thread that ends a batch can begin another one by itself."""
        return not self._infer_hook.is_async

    @property
    def n_running(self) -> int:
        """How many requests any hook is at work for, whoever still waits."""
        return self.n_in_batch + self.n_in_hooks + self.n_streams

    async def start(self, batching: Batching, on_warming: Callable[[], None]) -> int:
        """
        Load and warm up.

        Args:
            batching: The model's options: warm-up runs the largest batch.
            on_warming: Called when `load` is done.

        Returns:
            With how many examples the model was warmed up.

        Raises:
            Exception: What a hook raised.
        """
        self._load_begun = True
        context = self._handler.context
        batch_metrics(context.name, context.version).note_start()
        await self._run_stage(self._pipeline.call("load"))
        on_warming()
        if isinstance(self._handler, SteppedHandler):
            report = partial(self._on_report, self)
            worker, mailbox = self._main, self._mailbox
            self._stepper = Stepper(self._handler, self._pipeline, worker, mailbox, report)
            batching = Batching(max_size=self._handler.slots)
        return int(await self._run_stage(self._pipeline.warm_up(batching)))

    def prepare(self, job: Job, then: Prepared) -> None:
        """Preprocess a job, then call `then` with it and what went wrong, if anything did."""
        self._beside.prepare(job, then)

    def run(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        """Run a batch; `done` is told what became of it, before the answers are there."""
        self.n_in_batch = len(batch)
        if self._infer_hook.is_async:
            self._tasks.spawn(self._infer_mixed(batch, done))
        else:
            self._main.submit_or(
                partial(self._infer_here, batch, done), partial(self._not_inferred, batch, done)
            )

    @property
    def n_places(self) -> int | None:
        """How many streams may run at once, if the handler says so."""
        return self._handler.slots if isinstance(self._handler, SteppedHandler) else None

    def open_stream(self, job: Job, channel: Channel[Any] | None, done: Callable[[], None]) -> None:
        """
        Run a stream; `done` is called when its generator has been closed.

        Args:
            job: The request.
            channel: Takes the chunks; `None` = a stepped handler's are gathered for the sink.
            done: Told on the event loop that another one may run.
        """
        self.n_streams += 1
        if self._stepper is not None:
            self._stepper.enter(Entry(job, channel, partial(self._stepped, done)))
            return
        if channel is None:
            raise TypeError("Only a stepped handler's chunks are gathered.")
        hook = self._pipeline.contract.hooks["stream"]

        def ended() -> None:
            self.n_streams -= 1
            self._note_idle()
            done()

        if hook.is_async:
            self._tasks.spawn(run_async_stream(self._handler, self._pipeline, job, channel, ended))
            return
        post_end = partial(self._mailbox.post, ended)
        thread = threading.Thread(
            target=run_stream,
            args=(self._handler, self._pipeline, job, channel, post_end),
            name=f"mlserve-{self.context.name}-{self.context.replica}-stream",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as exc:  # the system gives no further thread
            channel.end(as_model_error(exc, "stream", self.context.name, job))
            ended()

    @property
    def has_health(self) -> bool:
        """Whether the handler has a `health` hook."""
        return self._pipeline.contract.hooks["health"].overridden

    async def check_health(self) -> None:
        """
        Call the `health` hook, between two batches.

        Raises:
            Exception: What it raised: the replica is unhealthy.
        """
        if self.has_health:
            await self._run_stage(self._pipeline.call("health"))

    async def try_examples(self) -> int:
        """
        Run the handler's examples through the pipeline, between two batches.

        Returns:
            How many there are.

        Raises:
            Exception: What a hook raised: the replica is broken.
        """
        if self._stepper is None:
            return int(await self._run_stage(self._pipeline.try_examples()))
        async with self._stepper.emptied():
            return int(await self._run_stage(self._pipeline.try_examples()))

    async def wait_idle(self) -> None:
        """Wait until no hook of any request runs."""
        if self.n_running:
            if self._idle is None:
                self._idle = asyncio.Event()
            await self._idle.wait()

    async def close(self) -> None:
        """
        Wait until no hook runs, then call `unload`, once for a begun `load`.

        May be called again, and cancelled: all callers wait for the same end.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self.wait_idle()
        try:
            if self._load_begun:
                await self._main.call(_nothing)  # after a `load` or `health` that still runs
                await self._run_stage(self._pipeline.call("unload"))
        except Exception:
            logger.exception("hook.unload.failed", extra={"model": self.context.name})
        finally:
            self._main.close()
            await self._beside.close()
            await self._tasks.close()

    async def _run_stage(self, stage: Any) -> Any:
        hooks = self._pipeline.contract.hooks.values()
        if any(hook.overridden and hook.is_async for hook in hooks):
            return await run_mixed(stage, self._handler, self._main)
        return await self._main.call(lambda: run_here(stage, self._handler))

    def _infer_here(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        report = BatchReport(infer_at=self._pipeline.clock())
        # No local holds the outcomes: see `beside` for what errors among them would keep.
        self._mailbox.post(
            self._inferred,
            batch,
            self._try_infer(batch, report),
            report,
            done,
            self._go_on(report),
        )

    def _go_on(self, report: BatchReport) -> int:
        """Have what is laid out run next, and say how many it is; after any trouble nothing is."""
        next_batch = self.next_batch
        if next_batch is None or next_batch.laid_out is None:
            return 0
        if report.n_splits or report.n_out_of_memory or report.has_failed:
            return 0
        taken = next_batch.take_up(self._pipeline.clock)
        if taken is None:
            return 0
        batch = taken.plan.batch
        self._main.go_on_with(partial(self._infer_here, batch, taken.done))
        return len(batch)

    async def _infer_mixed(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        report = BatchReport(infer_at=self._pipeline.clock())
        stage = self._pipeline.infer(batch, report)
        try:
            outcomes = await run_mixed(stage, self._handler, self._main)
        except BaseException as exc:
            if is_cancelling():
                raise
            outcomes = [as_answer(exc, "infer", self.context.name)] * len(batch)
        report.infer_s = self._pipeline.clock() - report.infer_at
        self._inferred(batch, outcomes, report, done)

    def _try_infer(self, batch: list[Job], report: BatchReport) -> list[Outcome]:
        """Give an outcome for every job whatever happens: a lost one would hang its client."""
        try:
            return run_here(self._pipeline.infer(batch, report), self._handler)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            return [as_answer(exc, "infer", self.context.name)] * len(batch)
        finally:
            report.infer_s = self._pipeline.clock() - report.infer_at

    def _not_inferred(
        self, batch: list[Job], done: Callable[[BatchReport], None], error: MLServeError
    ) -> None:
        self._inferred(batch, [error] * len(batch), BatchReport(), done)

    def _inferred(
        self,
        batch: list[Job],
        outcomes: list[Outcome],
        report: BatchReport,
        done: Callable[[BatchReport], None],
        n_next: int = 0,
    ) -> None:
        self._note_inferred(batch, report, n_next)
        self._report(report, done)
        self._beside.finish(batch, outcomes)

    def _note_inferred(self, batch: list[Job], report: BatchReport, n_next: int) -> None:
        self.n_in_batch = n_next
        infer_at, infer_s = report.infer_at, report.infer_s
        for job in batch:
            times = job.times
            times.infer_at = infer_at
            times.infer_s = infer_s
            job.stage = "postprocess"

    def _report(self, report: BatchReport, done: Callable[[BatchReport], None]) -> None:
        """Say what became of a batch, whereupon the next one begins."""
        try:
            self._on_report(self, report)
            done(report)
        except Exception:  # the answers must follow whatever happens
            logger.exception("batch.dispatch.failed", extra={"model": self.context.name})

    def _stepped(self, done: Callable[[], None], entry: Entry, error: MLServeError | None) -> None:
        self.n_streams -= 1
        if entry.channel is not None:
            entry.channel.end(error)
            self._note_idle()
        else:
            entry.job.stage = "postprocess"
            self._beside.finish([entry.job], [error or entry.chunks])
        done()

    def _note_idle(self) -> None:
        if self._idle is not None and not self.n_running:
            self._idle.set()
            self._idle = None

    def __repr__(self) -> str:
        state = "busy" if self.is_busy else "idle"
        return (
            f"<ThreadReplica {self.context.replica} on {self.context.device}: {state},"
            f" {self.n_in_hooks} in hooks, {self.n_streams} streams>"
        )


OnReport = Callable[[ThreadReplica, BatchReport], None]
"""Takes what became of a batch."""


def _nothing() -> None:
    """Runs behind what a worker was given before."""
