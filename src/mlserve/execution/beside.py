"""
The hooks of single requests, before and after the model: they run beside it, in a second thread.

So the model is never kept waiting by them. The methods here are called on the event loop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from mlserve.errors import MLServeError
from mlserve.execution.pipeline import Outcome, Pipeline, as_answer
from mlserve.execution.stages import is_cancelling, run_here, run_mixed
from mlserve.execution.worker import Mailbox, TaskSet, Worker
from mlserve.job import Job

__all__ = ["HooksBeside", "Prepared"]

Prepared = Callable[[Job, MLServeError | None], None]
"""Takes a job that was preprocessed, or that could not be."""


class HooksBeside:
    """
    Runs `preprocess`, `cost`, `batch_key` and `postprocess` of one replica.

    Args:
        handler: The handler.
        pipeline: The stages that call its hooks.
        name: The thread's name.
        mailbox: The way back to the event loop.
        on_change: Called when `n_running` has changed.
    """

    def __init__(
        self,
        handler: Any,
        pipeline: Pipeline,
        name: str,
        mailbox: Mailbox,
        on_change: Callable[[], None],
    ) -> None:
        self.n_running = 0
        """How many requests are in these hooks."""
        self._handler = handler
        self._pipeline = pipeline
        self._postprocess = pipeline.contract.hooks["postprocess"]
        self._mailbox = mailbox
        self._on_change = on_change
        self._worker = Worker(name, mailbox)
        self._tasks = TaskSet()

    def prepare(self, job: Job, then: Prepared) -> None:
        """Preprocess a job, then call `then` with it and what went wrong, if anything did."""
        if self._pipeline.prepares_nothing:
            then(job, None)
            return
        self._count(1)
        if self._pipeline.prepares_in_thread:
            self._worker.submit_or(
                partial(self._prepare_here, job, then),
                lambda error: self._prepared(job, then, error),
            )
        else:
            self._tasks.spawn(self._prepare_mixed(job, then))

    def finish(self, batch: list[Job], outcomes: list[Outcome]) -> None:
        """Turn what the model has made into responses, and answer."""
        postprocess = self._postprocess
        if not postprocess.overridden:
            self._finish_plainly(batch, outcomes)
            return
        self._count(len(batch))  # their hooks still run: not idle
        if postprocess.needs_thread:
            self._worker.submit_or(
                partial(self._finish_here, batch, outcomes),
                lambda error: self._fail_all(batch, error),
            )
        else:
            for job, outcome in zip(batch, outcomes, strict=True):
                self._tasks.spawn(self._finish_mixed(job, outcome))

    async def close(self) -> None:
        """End the thread, after what runs in it."""
        self._worker.close()
        await self._tasks.close()

    def _count(self, n: int) -> None:
        self.n_running += n
        self._on_change()

    # An error is never a local of a frame that its own traceback holds, nor of one that called
    # it: the two would keep each other, and the request, until the collector comes.

    def _prepare_here(self, job: Job, then: Prepared) -> None:
        self._mailbox.post(self._prepared, job, then, self._try_prepare(job))

    def _try_prepare(self, job: Job) -> MLServeError | None:
        if not job.abandoned:
            try:
                run_here(self._pipeline.prepare(job), self._handler)
            except BaseException as exc:  # noqa: BLE001 - a lost job would hang its client
                return as_answer(exc, "preprocess", self._pipeline.name, job)
        return None

    async def _prepare_mixed(self, job: Job, then: Prepared) -> None:
        self._prepared(job, then, await self._try_prepare_mixed(job))

    async def _try_prepare_mixed(self, job: Job) -> MLServeError | None:
        if not job.abandoned:
            try:
                await run_mixed(self._pipeline.prepare(job), self._handler, self._worker)
            except BaseException as exc:
                if is_cancelling():
                    raise
                return as_answer(exc, "preprocess", self._pipeline.name, job)
        return None

    def _prepared(self, job: Job, then: Prepared, error: MLServeError | None) -> None:
        self._count(-1)
        then(job, error)

    def _finish_plainly(self, batch: list[Job], outcomes: list[Outcome]) -> None:
        """Answer at once where no hook has to be called."""
        accept = self._pipeline.accept
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, MLServeError):
                job.fail(outcome)
            elif job.abandoned:
                job.result(None)
            else:
                _answer(job, *accept(job, outcome))
        self._on_change()

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
            return None, as_answer(exc, "postprocess", self._pipeline.name, job)

    async def _finish_mixed(self, job: Job, outcome: Outcome) -> None:
        self._answer(job, *await self._finished_mixed(job, outcome))

    async def _finished_mixed(self, job: Job, outcome: Outcome) -> tuple[Any, MLServeError | None]:
        if isinstance(outcome, MLServeError):
            return None, outcome
        if job.abandoned:
            return None, None
        try:
            stage = self._pipeline.finish(job, outcome)
            return await run_mixed(stage, self._handler, self._worker), None
        except BaseException as exc:
            if is_cancelling():
                raise
            return None, as_answer(exc, "postprocess", self._pipeline.name, job)

    def _fail_all(self, batch: list[Job], error: MLServeError) -> None:
        for job in batch:
            self._answer(job, None, error)

    def _answer(self, job: Job, value: Any, error: MLServeError | None) -> None:
        self._count(-1)
        _answer(job, value, error)

    def __repr__(self) -> str:
        return f"<HooksBeside of {self.n_running} requests>"


def _answer(job: Job, value: Any, error: MLServeError | None) -> None:
    if error is not None:
        job.fail(error)
    else:
        job.result(value)
