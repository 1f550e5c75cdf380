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

from mlserve.batching.report import BatchReport
from mlserve.errors import MLServeError, ModelError
from mlserve.execution.pipeline import Outcome, Pipeline, as_model_error
from mlserve.execution.stages import as_exception, is_cancelling, run_here, run_mixed
from mlserve.execution.stream_runner import run_async_stream, run_stream
from mlserve.execution.worker import Mailbox, TaskSet, Worker
from mlserve.handler import Context, ModelHandler
from mlserve.job import Job
from mlserve.observability.loggers import get_logger
from mlserve.settings import Batching
from mlserve.streaming import Channel

__all__ = ["OnReport", "Prepared", "ThreadReplica"]

logger = get_logger(__name__)

Prepared = Callable[[Job, MLServeError | None], None]
"""Takes a job that was preprocessed, or that could not be."""


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
        self.n_in_hooks = 0
        """How many requests are in a hook before or after `infer`."""
        self.n_streams = 0
        """How many streams run."""
        self.n_in_batch = 0
        """How many requests are in the batch that runs, until its thread returns."""
        self._handler = handler
        self._pipeline = pipeline
        self._mailbox = mailbox
        self._on_report = on_report
        name = f"mlserve-{context.name}-{context.replica}"
        self._main = Worker(name, mailbox)
        self._side = Worker(f"{name}-hooks", mailbox)
        self._tasks = TaskSet()
        self._idle = asyncio.Event()
        self._idle.set()
        self._load_begun = False
        self._closing: asyncio.Task[None] | None = None
        handler.context = context

    @property
    def is_busy(self) -> bool:
        """Whether a batch runs; true until its thread returns, whoever still waits."""
        return self.n_in_batch > 0

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
        await self._run_stage(self._pipeline.call("load"))
        on_warming()
        return int(await self._run_stage(self._pipeline.warm_up(batching)))

    def prepare(self, job: Job, then: Prepared) -> None:
        """Preprocess a job, then call `then` with it and what went wrong, if anything did."""
        if self._pipeline.prepares_nothing:
            then(job, None)
            return
        self.n_in_hooks += 1
        self._note_idle()
        if self._pipeline.prepares_in_thread:
            self._submit(
                self._side,
                partial(self._prepare_here, job, then),
                lambda error: self._prepared(job, then, error),
            )
        else:
            self._tasks.spawn(self._prepare_mixed(job, then))

    def run(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        """Run a batch; `done` is told what became of it, before the answers are there."""
        self.n_in_batch = len(batch)
        self._note_idle()
        if self._pipeline.contract.hooks["infer"].is_async:
            self._tasks.spawn(self._infer_mixed(batch, done))
        else:
            self._submit(
                self._main,
                partial(self._infer_here, batch, done),
                lambda error: self._inferred(batch, [error] * len(batch), BatchReport(), done),
            )

    def open_stream(self, job: Job, channel: Channel[Any], done: Callable[[], None]) -> None:
        """Run a stream into a channel; `done` is called when its generator has been closed."""
        self.n_streams += 1
        self._note_idle()
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
        return int(await self._run_stage(self._pipeline.try_examples()))

    async def wait_idle(self) -> None:
        """Wait until no hook of any request runs."""
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
            self._side.close()
            await self._tasks.close()

    async def _run_stage(self, stage: Any) -> Any:
        hooks = self._pipeline.contract.hooks.values()
        if any(hook.overridden and hook.is_async for hook in hooks):
            return await run_mixed(stage, self._handler, self._main)
        return await self._main.call(lambda: run_here(stage, self._handler))

    def _submit(
        self, worker: Worker, task: Callable[[], None], fail: Callable[[MLServeError], None]
    ) -> None:
        try:
            worker.submit(task)
        except RuntimeError:  # the system gives no further thread
            logger.exception("thread.start.failed", extra={"model": self.context.name})
            self._mailbox.post(fail, ModelError())

    # An error is never a local of a frame that its own traceback holds: the two would keep each
    # other, and the request, until the collector comes.

    def _prepare_here(self, job: Job, then: Prepared) -> None:
        self._mailbox.post(self._prepared, job, then, self._try_prepare(job))

    def _try_prepare(self, job: Job) -> MLServeError | None:
        if not job.abandoned:
            try:
                run_here(self._pipeline.prepare(job), self._handler)
            except BaseException as exc:  # noqa: BLE001 - a lost job would hang its client
                return self._as_error(exc, "preprocess", job)
        return None

    async def _prepare_mixed(self, job: Job, then: Prepared) -> None:
        self._prepared(job, then, await self._try_prepare_mixed(job))

    async def _try_prepare_mixed(self, job: Job) -> MLServeError | None:
        if not job.abandoned:
            try:
                await run_mixed(self._pipeline.prepare(job), self._handler, self._side)
            except BaseException as exc:
                if is_cancelling():
                    raise
                return self._as_error(exc, "preprocess", job)
        return None

    def _prepared(self, job: Job, then: Prepared, error: MLServeError | None) -> None:
        self.n_in_hooks -= 1
        self._note_idle()
        then(job, error)

    def _infer_here(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        started, report = self._pipeline.clock(), BatchReport()
        outcomes = self._guarded(
            batch, lambda: run_here(self._pipeline.infer(batch, report), self._handler)
        )
        report.infer_s = self._pipeline.clock() - started
        self._mailbox.post(self._inferred, batch, outcomes, report, done)

    async def _infer_mixed(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        started, report = self._pipeline.clock(), BatchReport()
        stage = self._pipeline.infer(batch, report)
        try:
            outcomes = await run_mixed(stage, self._handler, self._main)
        except BaseException as exc:
            if is_cancelling():
                raise
            outcomes = [self._as_error(exc, "infer")] * len(batch)
        report.infer_s = self._pipeline.clock() - started
        self._inferred(batch, outcomes, report, done)

    def _guarded(self, batch: list[Job], run: Callable[[], list[Outcome]]) -> list[Outcome]:
        """Give an outcome for every job whatever happens: a lost one would hang its client."""
        try:
            return run()
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            return [self._as_error(exc, "infer")] * len(batch)

    def _inferred(
        self,
        batch: list[Job],
        outcomes: list[Outcome],
        report: BatchReport,
        done: Callable[[BatchReport], None],
    ) -> None:
        self.n_in_batch = 0
        for job in batch:
            job.times.infer_s = report.infer_s
            job.stage = "postprocess"
        try:
            self._on_report(self, report)
            done(report)
        except Exception:  # the answers must follow whatever happens
            logger.exception("batch.dispatch.failed", extra={"model": self.context.name})
        postprocess = self._pipeline.contract.hooks["postprocess"]
        self.n_in_hooks += len(batch)  # their hooks still run: not idle
        self._note_idle()
        if postprocess.needs_thread:
            self._submit(
                self._side,
                partial(self._finish_here, batch, outcomes),
                lambda error: self._fail_all(batch, error),
            )
        elif postprocess.is_async and postprocess.overridden:
            for job, outcome in zip(batch, outcomes, strict=True):
                self._tasks.spawn(self._finish_mixed(job, outcome))
        else:
            for job, outcome in zip(batch, outcomes, strict=True):
                self._answer(job, *self._finished(job, outcome))

    def _finish_here(self, batch: list[Job], outcomes: list[Outcome]) -> None:
        for job, outcome in zip(batch, outcomes, strict=True):
            self._mailbox.post(self._answer, job, *self._finished(job, outcome))

    def _finished(self, job: Job, outcome: Outcome) -> tuple[Any, MLServeError | None]:
        if isinstance(outcome, MLServeError):
            return None, outcome
        if job.abandoned:
            return None, None
        try:
            return run_here(self._pipeline.finish(job, outcome), self._handler), None
        except BaseException as exc:  # noqa: BLE001 - a lost job would hang its client
            return None, self._as_error(exc, "postprocess", job)

    async def _finish_mixed(self, job: Job, outcome: Outcome) -> None:
        self._answer(job, *await self._finished_mixed(job, outcome))

    async def _finished_mixed(self, job: Job, outcome: Outcome) -> tuple[Any, MLServeError | None]:
        if isinstance(outcome, MLServeError):
            return None, outcome
        if job.abandoned:
            return None, None
        try:
            stage = self._pipeline.finish(job, outcome)
            return await run_mixed(stage, self._handler, self._side), None
        except BaseException as exc:
            if is_cancelling():
                raise
            return None, self._as_error(exc, "postprocess", job)

    def _as_error(self, error: BaseException, hook: str, job: Job | None = None) -> MLServeError:
        if isinstance(error, MLServeError):
            return error
        return as_model_error(as_exception(error), hook, self.context.name, job)

    def _fail_all(self, batch: list[Job], error: MLServeError) -> None:
        for job in batch:
            self._answer(job, None, error)

    def _answer(self, job: Job, value: Any, error: MLServeError | None) -> None:
        self.n_in_hooks -= 1
        self._note_idle()
        if error is not None:
            job.fail(error)
        else:
            job.result(value)

    def _note_idle(self) -> None:
        if self.n_running:
            self._idle.clear()
        else:
            self._idle.set()

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
