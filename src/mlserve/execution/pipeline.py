"""
The stages of a request: prepare, infer, finish; and those of a replica: load and warm-up.

Whatever a hook raises ends here: it becomes the error of the requests that it belongs to.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Set
from operator import attrgetter
from typing import Any

from mlserve.batching.queue import BatchLimits, RequestQueue
from mlserve.batching.report import BatchReport
from mlserve.contract import Contract
from mlserve.errors import (
    AbandonedError,
    CapacityError,
    InvalidInputError,
    MLServeError,
    ModelError,
    ModelOutputError,
    OutOfMemoryError,
)
from mlserve.execution.recovery import free_memory, is_out_of_memory, let_go
from mlserve.execution.stages import Stage, Step, as_exception, contained
from mlserve.handler import Call
from mlserve.job import Job
from mlserve.observability.loggers import get_logger
from mlserve.settings import Batching

__all__ = ["Outcome", "Pipeline", "as_answer", "as_model_error"]

logger = get_logger(__name__)

# What a hook may raise for its client to read: its own words, or that another model is busy.
_FOR_CLIENTS = (InvalidInputError, CapacityError)
# What a model that works may do to a request is not among them: refuse it.
_OWN_FAULTS = (ModelError, OutOfMemoryError)

Outcome = Any
"""An output of `infer`, or the `MLServeError` that stands in its place."""

_payload_of = attrgetter("payload")
_ONE_AT_A_TIME = Batching(max_size=1)
_WARM_STEPS = 64
_NOT_A_BATCH = (str, bytes, Mapping, Set)


class Pipeline:
    """
    Calls the hooks of one handler class in order; holds no state of a request or replica.

    Args:
        contract: The handler class.
        name: The model's name, for messages and logs.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self, contract: Contract, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.contract = contract
        self.name = name
        self.clock = clock
        hooks = contract.hooks
        self._prepare_hooks = [hooks["preprocess"], hooks["cost"], hooks["batch_key"]]
        written = [hook for hook in self._prepare_hooks if hook.overridden]
        self.prepares_in_thread = bool(written) and all(hook.needs_thread for hook in written)
        """Whether every hook before the queue is sync, and there is one."""
        self.prepares_nothing = not written
        """Whether there is no hook before the queue."""
        self._infer_hook, self._postprocess = hooks["infer"], hooks["postprocess"]
        self._accept = contract.response.accept

    def prepare(self, job: Job) -> Stage[None]:
        """
        Turn the job's request into an input, and find its cost and key.

        Raises:
            MLServeError: If a hook raised; already logged where it is not the request's fault.
        """
        job.times.preprocess_at = started = self.clock()
        preprocess, cost, batch_key = self._prepare_hooks
        running = preprocess
        try:
            if preprocess.overridden:
                job.payload = yield _step(preprocess, job)
            if (running := cost).overridden:
                job.cost = contained(_checked_cost, (yield _step(cost, job)))
            if (running := batch_key).overridden:
                job.key = contained(_checked_key, (yield _step(batch_key, job)))
        except ModelOutputError as exc:
            logger.error("output.refused: %s", exc, extra=_about(self.name, job))
            raise
        except _FOR_CLIENTS:
            raise
        except Exception as exc:
            is_refused = isinstance(exc, ValueError) and not isinstance(exc, MLServeError)
            if not is_refused or running is not preprocess:
                raise as_model_error(exc, running.name, self.name, job) from exc
            logger.info("preprocess.refused", extra=_about(self.name, job), exc_info=True)
            raise InvalidInputError("The model cannot take this input.") from exc
        finally:
            job.times.preprocess_s = self.clock() - started

    def infer(self, jobs: list[Job], report: BatchReport) -> Stage[list[Outcome]]:
        """
        Run the model on a batch and give one outcome per job.

        When `infer` raises or returns something else than one output per input, the batch is split
        in halves until the guilty request stands alone, unless the handler is not idempotent:
        `infer` is called less than twice as often as there are requests. Those that nobody waits
        for any more are left out. When memory runs out, it is freed before each half.

        Args:
            jobs: The batch.
            report: Notes what happened on the way.
        """
        outcomes = yield from self._infer(jobs, report)
        if isinstance(outcomes[0], _OWN_FAULTS):
            report.has_failed = all(isinstance(outcome, _OWN_FAULTS) for outcome in outcomes)
        return outcomes

    def note_error(self, error: BaseException) -> None:
        """Look at what `infer` or `stream` raised, in their thread, before anything is done."""

    def _infer(self, jobs: list[Job], report: BatchReport) -> Stage[list[Outcome]]:
        try:
            outputs = yield self._infer_step(jobs)
            if type(outputs) is list and len(outputs) == len(jobs):
                outcomes = list(outputs)  # a copy: the handler may go on with its own
            else:
                outcomes = contained(self._one_per_job, outputs, len(jobs))
        except Exception as exc:  # noqa: BLE001 - user code may raise anything
            self.note_error(exc)
            is_splittable = len(jobs) > 1 and self.contract.handler_class.idempotent
            is_memory = is_out_of_memory(exc) and not isinstance(exc, MLServeError)
            if isinstance(exc, ModelOutputError):
                logger.error("infer.output.refused: %s", exc, extra={"model": self.name})
            if not is_splittable and not is_memory:
                report.n_isolated += report.n_splits > 0
                return [self._as_batch_error(exc, jobs)] * len(jobs)
            # Never the exception itself, whose traceback holds this frame.
            error = None if is_splittable else self._as_batch_error(exc, jobs)
            if is_memory:
                self._note_out_of_memory(exc, jobs, report)
        else:
            if not any(map(isinstance, outcomes, itertools.repeat(BaseException))):
                return outcomes
            return [
                as_model_error(outcome, "infer", self.name, job)
                if isinstance(outcome, BaseException)
                else outcome
                for job, outcome in zip(jobs, outcomes, strict=True)
            ]
        # Out of the `except` block: its exception held the tensors that were too many.
        if is_memory:
            free_memory()
        if error is not None:
            report.n_isolated += report.n_splits > 0
            return [error] * len(jobs)
        report.n_splits += 1
        middle = len(jobs) // 2
        first = yield from self._infer_wanted(jobs[:middle], report)
        return first + (yield from self._infer_wanted(jobs[middle:], report))

    def _infer_wanted(self, jobs: list[Job], report: BatchReport) -> Stage[list[Outcome]]:
        """Run a part of a batch, without those whose callers have left or run out of time."""
        is_wanted = [not job.abandoned for job in jobs]  # another thread may change it any time
        wanted = list(itertools.compress(jobs, is_wanted))
        outcomes = iter((yield from self._infer(wanted, report)) if wanted else ())
        return [next(outcomes) if wanted else AbandonedError() for wanted in is_wanted]

    def _as_batch_error(self, error: Exception, jobs: list[Job]) -> MLServeError:
        answer = as_model_error(error, "infer", self.name, jobs[0])
        is_memory = isinstance(answer, OutOfMemoryError)
        return OutOfMemoryError(self.name, len(jobs)) if is_memory else answer

    def _note_out_of_memory(self, error: Exception, jobs: list[Job], report: BatchReport) -> None:
        about = {"model": self.name, "batch_size": len(jobs)}
        logger.warning("infer.memory.exhausted", extra=about)
        let_go(error)
        report.n_out_of_memory += 1
        if len(jobs) > 1 and not 0 < len(report.too_large) <= len(jobs):
            report.too_large = jobs

    def finish(self, job: Job, output: Any) -> Stage[Any]:
        """
        Turn an output into a validated response.

        Raises:
            MLServeError: If `postprocess` raised or its result does not fit the response type.
        """
        job.times.postprocess_at = started = self.clock()
        postprocess = self._postprocess
        try:
            if postprocess.overridden:
                arguments = (output, job.call) if postprocess.wants_call else (output,)
                output = yield Step(postprocess, arguments)
            return contained(self.contract.response.accept, output)
        except ModelOutputError as exc:
            logger.error("output.refused: %s", exc, extra=_about(self.name, job))
            raise
        except _FOR_CLIENTS:
            raise
        except Exception as exc:
            raise as_model_error(exc, "postprocess", self.name, job) from exc
        finally:
            job.times.postprocess_s = self.clock() - started

    def accept(self, job: Job, output: Any) -> tuple[Any, MLServeError | None]:
        """Do what `finish` does where there is no `postprocess`, and give the response or error."""
        times = job.times
        times.postprocess_at = started = self.clock()
        try:
            return self._accept(output), None
        except ModelOutputError as exc:
            logger.error("output.refused: %s", exc, extra=_about(self.name, job))
            return None, exc
        except BaseException as exc:  # noqa: BLE001 - a validator may raise anything
            return None, as_model_error(as_exception(exc), "postprocess", self.name, job)
        finally:
            times.postprocess_s = self.clock() - started

    def admit(self, job: Job) -> Stage[Any]:
        """Take a job's input into a stepped handler, and give its sequence."""
        return (yield _step(self.contract.hooks["admit"], job))

    def step(self, jobs: list[Job]) -> Stage[Any]:
        """Advance a stepped handler, at whose sequences these jobs wait."""
        return (yield Step(self.contract.hooks["step"]))

    def evict(self, sequence: Any) -> Stage[None]:
        """Have a stepped handler forget a sequence."""
        yield Step(self.contract.hooks["evict"], (sequence,))

    def call(self, hook: str) -> Stage[None]:
        """Call a hook of the replica, such as `load`; what it raises passes through."""
        yield Step(self.contract.hooks[hook])

    def warm_up(self, batching: Batching) -> Stage[int]:
        """Warm the model up and say with how many examples; what a hook raises passes through."""
        hooks = self.contract.hooks
        if hooks["warmup"].overridden:
            yield Step(hooks["warmup"])
            return 1
        return (yield from self.try_examples(batching))

    def try_examples(self, batching: Batching = _ONE_AT_A_TIME) -> Stage[int]:
        """
        Run the handler's examples through the whole pipeline, and say how many there are.

        What a hook raises passes through.

        Args:
            batching: How large a batch they fill at most; one request alone is always run.
        """
        hooks = self.contract.hooks
        examples = list((yield Step(hooks["examples"])))
        if not examples:
            return 0
        if self.contract.is_stepped:
            for size in sorted({1, batching.max_size}):
                yield from self._warm_steps(examples, size)
            return len(examples)
        if self.contract.can_infer:
            for size in sorted({1, batching.max_size}):
                yield from self._warm_batch(examples, size, batching)
        if self.contract.can_stream:
            job = self._example_job(examples[0])
            yield from self.prepare(job)
            chunk = yield _step(hooks["stream"], job)
            if chunk is not None:  # an example may stream nothing
                contained(self.contract.chunk.accept, chunk)
        return len(examples)

    def _warm_batch(self, examples: list[Any], size: int, batching: Batching) -> Stage[None]:
        queue: RequestQueue[Job] = RequestQueue(capacity=size)
        for number in range(size):
            job = self._example_job(examples[number % len(examples)])
            yield from self.prepare(job)
            job.enqueued_at = self.clock()
            queue.reserve()
            queue.put(job)
        limits = BatchLimits(max_size=size, max_cost=batching.max_cost, padded=batching.padded)
        batch = queue.take(limits, self.clock()).batch
        outcomes = yield from self.infer(batch, BatchReport())
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, MLServeError):
                raise outcome
            yield from self.finish(job, outcome)

    def _warm_steps(self, examples: list[Any], size: int) -> Stage[None]:
        """Advance so many examples of a stepped handler, to their ends if these are near."""
        running: list[tuple[Any, Job, list[Any]]] = []
        try:
            for number in range(size):
                job = self._example_job(examples[number % len(examples)])
                yield from self.prepare(job)
                running.append(((yield from self.admit(job)), job, []))
            for _ in range(_WARM_STEPS):
                if running:
                    yield from self._warm_step(running)
        finally:
            for sequence, _, _ in running:
                yield from self.evict(sequence)

    def _warm_step(self, running: list[tuple[Any, Job, list[Any]]]) -> Stage[None]:
        for advance in (yield from self.step([job for _, job, _ in running])):
            for entry in [entry for entry in running if entry[0] is advance.sequence]:
                if advance.is_finished or advance.error is not None:
                    running.remove(entry)
                if advance.error is not None:
                    raise advance.error
                entry[2].extend(contained(self.contract.chunk.accept, c) for c in advance.chunks)
                if advance.is_finished:
                    yield from self.finish(entry[1], entry[2])

    def _example_job(self, example: Any) -> Job:
        call = Call("warm-up", timeout_s=3600.0, clock=self.clock)
        return Job(example, call, timeout_s=call.remaining_s)

    def _infer_step(self, jobs: list[Job]) -> Step:
        hook = self._infer_hook
        inputs = list(map(_payload_of, jobs))
        return Step(hook, (inputs, [job.call for job in jobs]) if hook.wants_call else (inputs,))

    def _one_per_job(self, outputs: Any, n: int) -> list[Any]:
        """Split what `infer` returned into one output per input."""
        if isinstance(outputs, _NOT_A_BATCH) or not hasattr(outputs, "__len__"):
            raise ModelOutputError(
                f"`infer` of model `{self.name}` returned a value of type"
                f" `{type(outputs).__name__}`. Return a"
                " list, array or tensor with one output per input, in order."
            )
        try:
            n_outputs = len(outputs)
        except TypeError:  # an array of no dimension
            n_outputs = 0
        if n_outputs == n:
            # Without a postprocess, one copy serves the whole batch.
            is_final = not self._postprocess.overridden
            at_once = is_final and hasattr(outputs, "tolist")
            values: list[Any] = outputs.tolist() if at_once else list(outputs)
            n_outputs = len(values)  # a data frame has the length of its rows, but gives columns
            if n_outputs == n:
                return values
        raise ModelOutputError(
            f"`infer` of model `{self.name}` returned {n_outputs} outputs for {n} inputs."
            " Return exactly one per input, in order."
        )


def as_model_error(
    error: BaseException, hook: str, name: str, job: Job | None = None
) -> MLServeError:
    """Give the error that a client may see, and log the one that it may not."""
    if isinstance(error, (*_FOR_CLIENTS, ModelOutputError)):
        return error
    logger.error("hook.%s.failed", hook, exc_info=error, extra=_about(name, job))
    return OutOfMemoryError(name) if is_out_of_memory(error) else ModelError()


def _step(hook: Any, job: Job) -> Step:
    return Step(hook, (job.payload, job.call) if hook.wants_call else (job.payload,))


def _about(name: str, job: Job | None) -> dict[str, Any]:
    return {"model": name, "request_id": job.call.request_id if job is not None else None}


def _checked_cost(cost: Any) -> int:
    if isinstance(cost, bool) or not hasattr(cost, "__index__") or cost.__index__() < 0:
        raise ModelOutputError(
            f"`cost` must return a whole number that is not negative, it returned a value of type"
            f" `{type(cost).__name__}`."
        )
    return int(cost.__index__())


def _checked_key(key: Any) -> Any:
    try:
        hash(key)
    except TypeError:
        raise ModelOutputError(
            f"`batch_key` must return something hashable, it returned a value of type"
            f" `{type(key).__name__}`."
        ) from None
    return key


def as_answer(error: BaseException, hook: str, name: str, job: Job | None = None) -> MLServeError:
    """Give the error that a client may see for whatever was raised, or was made of it already."""
    if isinstance(error, MLServeError):
        return error
    return as_model_error(as_exception(error), hook, name, job)
