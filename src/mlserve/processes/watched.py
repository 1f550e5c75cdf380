"""
Running hooks under the eyes of the other processes: what runs is on the board before it runs.

So whoever outlives this process knows for which requests a hook was at work, and how long it may
be.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from mlserve.batching.report import BatchReport
from mlserve.contract import Contract
from mlserve.execution.pipeline import Outcome, Pipeline
from mlserve.execution.recovery import is_device_broken
from mlserve.execution.stages import Stage
from mlserve.execution.thread import ThreadReplica
from mlserve.handler import Call
from mlserve.job import Job
from mlserve.processes.board import Mark, ReplicaRow
from mlserve.settings import Batching
from mlserve.streaming import Channel

__all__ = ["HostedJob", "Watch", "WatchedPipeline", "WatchedReplica"]

ResultT = TypeVar("ResultT")

_SLACK_S = 1.0


class Requester(Protocol):
    """The HTTP process of a request, as its replica sees it."""

    def answer(self, job: "HostedJob", value: Any, error: BaseException | None) -> None:
        """Send the answer of a unary request."""

    def mark(self, job: "HostedJob", mark: Mark) -> None:
        """Say on the board where a request is. Any thread."""


class HostedJob(Job):
    """
    A request of an HTTP process.

    Args:
        requester: That process.
        number: The request's number there.
        slot: Which of that process's marks is its own.
        call: What the hooks may know of it.
        is_stream: Whether it is answered with chunks.
        is_alone: Whether nothing may run beside it.
        timeout_s: Its whole budget in seconds.
        priority: 0 is served first.
        tenant: Whose it is.
    """

    __slots__ = ("is_alone", "is_stream", "number", "requester", "slot")

    def __init__(  # noqa: PLR0913 - what is known of a request
        self,
        requester: Requester,
        number: int,
        slot: int,
        call: Call,
        *,
        is_stream: bool,
        is_alone: bool,
        timeout_s: float,
        priority: int,
        tenant: str | None = None,
    ) -> None:
        super().__init__(None, call, timeout_s=timeout_s, priority=priority, tenant=tenant)
        self.requester = requester
        self.number = number
        self.slot = slot
        self.is_stream = is_stream
        self.is_alone = is_alone

    def mark(self, mark: Mark) -> None:
        """Say on the board where it is. Any thread."""
        self.requester.mark(self, mark)

    def result(self, value: Any) -> None:
        """Hand over the response; a stream's goes to its channel."""
        if self.is_stream:
            super().result(value)
        else:
            self.requester.answer(self, value, None)

    def fail(self, error: BaseException) -> None:
        """Hand over the error; a stream's goes to its channel."""
        if self.is_stream:
            super().fail(error)
        else:
            self.requester.answer(self, None, error)


class Watch:
    """
    Keeps on the board until when the hooks that run should have returned.

    Args:
        row: The replica's row of the board.
        hard_timeout_s: How long one call may take; `None` = a second longer than its requests
            have time.
        idle_timeout_s: How long a call may take that is for no request, if that is `None`.
        clock: Gives monotonic seconds, the same for all processes.
        on_device_broken: Called in the hook's thread when the device can no longer be used.
    """

    def __init__(
        self,
        row: ReplicaRow,
        hard_timeout_s: float | None,
        idle_timeout_s: float,
        clock: Callable[[], float],
        on_device_broken: Callable[[BaseException], None],
    ) -> None:
        self.on_device_broken = on_device_broken
        self._row = row
        self._hard_timeout_s = hard_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._units: dict[object, float] = {}

    def begin(self, unit: object, jobs: Sequence[Job]) -> None:
        """Note that a call for these requests begins, the first one or another one of a unit."""
        if self._hard_timeout_s is not None:
            kill_at = self._clock() + self._hard_timeout_s
        elif jobs:
            kill_at = max(job.deadline for job in jobs) + _SLACK_S
        else:
            kill_at = self._clock() + self._idle_timeout_s
        self.bound(unit, kill_at)

    def bound(self, unit: object, kill_at: float) -> None:
        """Note that something is to end by then, in monotonic seconds."""
        with self._lock:
            self._units[unit] = kill_at
            self._row.kill_at = min(self._units.values())

    def end(self, unit: object) -> None:
        """Note that it has returned."""
        with self._lock:
            self._units.pop(unit, None)
            self._row.kill_at = min(self._units.values(), default=0.0)


class WatchedPipeline(Pipeline):
    """
    Marks each request before a hook is called for it, and bounds each call.

    Args:
        contract: The handler class.
        name: The model's name.
        watch: Keeps the times.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self, contract: Contract, name: str, watch: Watch, clock: Callable[[], float]
    ) -> None:
        super().__init__(contract, name, clock)
        self._watch = watch

    def prepare(self, job: Job) -> Stage[None]:
        """As in any pipeline."""
        if not isinstance(job, HostedJob):  # an example
            yield from super().prepare(job)
            return
        job.mark(Mark.PREPROCESS)
        yield from self._watched(super().prepare(job), [job])
        job.mark(Mark.WAITING)

    def infer(self, jobs: list[Job], report: BatchReport) -> Stage[list[Outcome]]:
        """As in any pipeline; the requests stay marked until they are answered."""
        stage = super().infer(jobs, report)
        if not isinstance(jobs[0], HostedJob):
            return (yield from stage)
        return (yield from self._watched(stage, jobs))

    def finish(self, job: Job, output: Any) -> Stage[Any]:
        """As in any pipeline."""
        stage = super().finish(job, output)
        if not isinstance(job, HostedJob) or not self.contract.hooks["postprocess"].overridden:
            return (yield from stage)
        job.mark(Mark.POSTPROCESS)
        return (yield from self._watched(stage, [job]))

    def admit(self, job: Job) -> Stage[Any]:
        """As in any pipeline; the request is marked until it is answered."""
        return (yield from self._watched(super().admit(job), [job]))

    def step(self, jobs: list[Job]) -> Stage[Any]:
        """As in any pipeline."""
        return (yield from self._watched(super().step(jobs), jobs))

    def evict(self, sequence: Any) -> Stage[None]:
        """As in any pipeline."""
        yield from self._watched(super().evict(sequence), [])

    def call(self, hook: str) -> Stage[None]:
        """As in any pipeline; only `health` is bounded here."""
        stage = super().call(hook)
        yield from self._watched(stage, []) if hook == "health" else stage

    def try_examples(self, batching: Batching | None = None) -> Stage[int]:
        """As in any pipeline."""
        stage = super().try_examples(batching) if batching else super().try_examples()
        return (yield from self._watched(stage, []))

    def note_error(self, error: BaseException) -> None:
        """End this process if the device cannot be used any more: only a new one helps."""
        if is_device_broken(error):
            self._watch.on_device_broken(error)

    def _watched(self, stage: Stage[ResultT], jobs: Sequence[Job]) -> Stage[ResultT]:
        """Run a stage each of whose calls has time of its own."""
        unit = object()
        try:
            step = next(stage)
            while True:
                self._watch.begin(unit, jobs)
                try:
                    value = yield step
                except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the stage's
                    step = stage.throw(exc)
                else:
                    step = stage.send(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # what the stage returned
        finally:
            self._watch.end(unit)


class WatchedReplica(ThreadReplica):
    """
    A replica in threads whose streams are marked, too.

    Attributes:
        watch: Keeps the times.
        is_held_up: Whether no batch may begin now.
        is_awaited: Whether requests wait for the end of the batch that runs.
        on_change: Called when a batch or stream has begun, or a batch has ended.
        on_answered: Called when a batch has been answered, or handed to its `postprocess`.
        All are set before the first request.
    """

    watch: Watch
    is_held_up: Callable[[], bool]
    is_awaited: Callable[[], bool]
    on_change: Callable[[], None]
    on_answered: Callable[[], None]

    @property
    def is_busy(self) -> bool:
        """Whether no batch can begin: one runs, or the answers of the last ones are not taken."""
        return self.n_in_batch > 0 or self.is_held_up()

    @property
    def goes_on(self) -> bool:
        """Never: the event loop says on the board what is to run, before it does."""
        return False

    def run(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        """Run a batch, as in any thread replica."""

        def ended(report: BatchReport) -> None:
            done(report)
            self.on_change()

        # Already here, on the event loop: what it marks as waiting, others may take back.
        for job in batch:
            _hosted(job).mark(Mark.INFER)
        super().run(batch, ended)
        self.on_change()

    def _inferred(
        self,
        batch: list[Job],
        outcomes: list[Outcome],
        report: BatchReport,
        done: Callable[[BatchReport], None],
        n_next: int = 0,
    ) -> None:
        self._note_inferred(batch, report, n_next)
        is_awaited = self.is_awaited()  # what waits is to begin before others are answered
        if is_awaited:
            self._report(report, done)
        try:
            self._beside.finish(batch, outcomes)
            self.on_answered()
        finally:
            if not is_awaited:
                self._report(report, done)

    def open_stream(self, job: Job, channel: Channel[Any] | None, done: Callable[[], None]) -> None:
        """Run a stream, as in any thread replica."""

        def ended() -> None:
            self.watch.end(job)
            done()
            self.on_change()

        _hosted(job).mark(Mark.INFER if channel is None else Mark.STREAM)
        if channel is None or self.n_places is not None:  # each step is watched by itself
            super().open_stream(job, channel, ended)
            self.on_change()
            return
        self.watch.begin(job, [job])
        super().open_stream(job, _TimedChannel(channel, self.watch, job), ended)
        self.on_change()


class _TimedChannel(Channel[Any]):
    """The channel of a stream, whose time stands still while its reader makes it wait."""

    def __init__(self, channel: Channel[Any], watch: Watch, job: Job) -> None:
        self._channel = channel
        self._watch = watch
        self._job = job

    def put(self, item: Any) -> bool:
        self._watch.end(self._job)
        is_read = self._channel.put(item)
        self._watch.begin(self._job, [self._job])
        return is_read

    async def aput(self, item: Any) -> bool:
        self._watch.end(self._job)
        is_read = await self._channel.aput(item)
        self._watch.begin(self._job, [self._job])
        return is_read

    def end(self, error: BaseException | None = None) -> None:
        self._channel.end(error)


def _hosted(job: Job) -> HostedJob:
    return job  # type: ignore[return-value]  # as every request here
