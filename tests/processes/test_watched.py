"""Until when hooks may run, and what the board says of it: with a clock that a test moves."""

import asyncio
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.processes.serving import until

from mlserve.batching.report import BatchReport
from mlserve.contract import read_contract
from mlserve.execution.stages import Step
from mlserve.handler import Call, ModelHandler
from mlserve.processes.board import Board, Mark, ReplicaRow
from mlserve.processes.watched import (
    HostedJob,
    Watch,
    WatchedPipeline,
    WatchedReplica,
    _TimedChannel,
)
from mlserve.streaming import Channel
from mlserve.testing import FakeClock


class Every(ModelHandler[str, str]):
    """Has every hook of a request."""

    def preprocess(self, request: str) -> str:
        return request

    def cost(self, item: str) -> int:
        return 1

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs

    def postprocess(self, output: str) -> str:
        return output

    def examples(self) -> list[str]:
        return ["a"]

    def health(self) -> None:
        """It is well."""


class Marks:
    """Keeps the marks of requests, in the order in which they were made."""

    def __init__(self) -> None:
        self.made: list[tuple[int, Mark]] = []

    def mark(self, job: HostedJob, mark: Mark) -> None:
        self.made.append((job.number, mark))

    def answer(self, job: HostedJob, value: Any, error: BaseException | None) -> None:
        """No test asks for it."""


class Scene:
    """A pipeline under watch, on a clock."""

    def __init__(self, hard_timeout_s: float | None = None) -> None:
        self.clock = FakeClock(100.0)
        self.row: ReplicaRow = Board.create(1, 1).replicas[0]
        self.broken: list[BaseException] = []
        self.watch = Watch(self.row, hard_timeout_s, 60.0, self.clock, self.broken.append)
        self.pipeline = WatchedPipeline(read_contract(Every), "m", self.watch, self.clock)
        self.marks = Marks()

    def job(self, number: int, timeout_s: float) -> HostedJob:
        call = Call(f"id-{number}", timeout_s=timeout_s, clock=self.clock)
        job = HostedJob(
            self.marks,
            number,
            number,
            call,
            is_stream=False,
            is_alone=False,
            timeout_s=timeout_s,
            priority=0,
        )
        job.payload = "a"
        return job


def test_hooks_of_a_batch_may_run_until_a_second_after_its_last_deadline() -> None:
    scene = Scene()
    stage = scene.pipeline.infer([scene.job(1, 5.0), scene.job(2, 9.0)], BatchReport())

    next(stage)

    assert scene.row.kill_at == 110.0


def test_with_a_limit_each_call_of_a_hook_has_so_much_time() -> None:
    scene = Scene(hard_timeout_s=2.0)
    stage = scene.pipeline.infer([scene.job(1, 5.0), scene.job(2, 9.0)], BatchReport())

    next(stage)
    first = scene.row.kill_at
    scene.clock.advance(1.5)
    stage.throw(ValueError("It is split."))
    second = scene.row.kill_at
    scene.clock.advance(1.5)
    stage.send(["a"])
    third = scene.row.kill_at
    with pytest.raises(StopIteration) as ended:
        stage.send(["b"])

    assert (first, second, third) == (102.0, 103.5, 105.0)
    assert ended.value.value == ["a", "b"]
    assert scene.row.kill_at == 0.0


def test_a_hook_for_no_request_may_run_as_long_as_a_request_may() -> None:
    bounded, unbounded = Scene(hard_timeout_s=2.0), Scene()

    stages = [scene.pipeline.call("health") for scene in (bounded, unbounded)]
    for stage in stages:
        next(stage)

    assert (bounded.row.kill_at, unbounded.row.kill_at) == (102.0, 160.0)


def test_examples_are_watched_too() -> None:
    scene = Scene(hard_timeout_s=2.0)
    stage = scene.pipeline.try_examples()

    next(stage)
    scene.clock.advance(1.0)
    step = stage.send(["a"])

    assert step.hook.name == "preprocess"
    assert scene.row.kill_at == 103.0
    assert scene.marks.made == []


@pytest.mark.parametrize("hook", ["load", "unload"])
def test_load_and_unload_are_bounded_by_others(hook: str) -> None:
    scene = Scene(hard_timeout_s=2.0)

    stage = scene.pipeline.call(hook)
    next(stage)

    assert scene.row.kill_at == 0.0


def test_each_hook_of_a_request_is_marked_before_it_runs() -> None:
    scene = Scene()
    job = scene.job(1, 5.0)

    prepare = scene.pipeline.prepare(job)
    assert next(prepare).hook.name == "preprocess"
    assert scene.marks.made == [(1, Mark.PREPROCESS)]
    assert prepare.send("b").hook.name == "cost"
    with pytest.raises(StopIteration):
        prepare.send(1)
    assert scene.marks.made[1:] == [(1, Mark.WAITING)]
    finish = scene.pipeline.finish(job, "b")
    assert next(finish).hook.name == "postprocess"
    assert scene.marks.made[2:] == [(1, Mark.POSTPROCESS)]


def test_a_hook_that_raises_has_returned() -> None:
    scene = Scene()
    stage = scene.pipeline.prepare(scene.job(1, 5.0))
    next(stage)

    with pytest.raises(Exception, match="failed"):
        stage.throw(RuntimeError("It is broken."))

    assert scene.row.kill_at == 0.0


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.1, 50.0)), max_size=20))
def test_the_board_has_the_time_of_what_is_overdue_first(events: list[tuple[str, float]]) -> None:
    scene = Scene()
    running: dict[str, float] = {}

    for unit, time_s in events:
        if unit in running:
            scene.watch.end(unit)
            del running[unit]
        else:
            running[unit] = scene.clock() + time_s + 1.0
            scene.watch.begin(unit, [scene.job(1, time_s)])
        assert scene.row.kill_at == pytest.approx(min(running.values(), default=0.0))


def test_the_time_of_a_stream_stands_still_while_its_reader_makes_it_wait() -> None:
    scene = Scene(hard_timeout_s=2.0)

    async def scenario() -> list[float]:
        job = scene.job(1, 5.0)
        channel: Channel[Any] = Channel(asyncio.get_running_loop(), 1)
        timed = _TimedChannel(channel, scene.watch, job)
        scene.watch.begin(job, [job])
        times = [scene.row.kill_at]
        timed.put("a")
        thread = threading.Thread(target=timed.put, args=("b",))
        thread.start()
        await until(lambda: scene.row.kill_at == 0)
        times.append(scene.row.kill_at)
        scene.clock.advance(10.0)
        await channel.get()
        await asyncio.to_thread(thread.join)
        times.append(scene.row.kill_at)
        await channel.get()
        assert await timed.aput("c")
        timed.end()
        return times

    assert asyncio.run(scenario()) == [102.0, 0.0, 112.0]


def test_only_an_error_of_the_device_ends_the_process() -> None:
    scene = Scene()

    scene.pipeline.note_error(RuntimeError("It is broken."))
    scene.pipeline.note_error(RuntimeError("CUDA out of memory."))
    scene.pipeline.note_error(error := RuntimeError("CUDA error: device-side assert triggered"))

    assert scene.broken == [error]


def test_a_step_is_passed_on_as_it_is() -> None:
    scene = Scene()

    step = next(scene.pipeline.infer([scene.job(1, 5.0)], BatchReport()))

    assert isinstance(step, Step)
    assert step.args == (["a"],)


def ended(*, is_awaited: bool, fails: bool = False) -> list[str]:
    """End a batch, and say in which order what follows is done."""
    done: list[str] = []

    def finish(*_: Any) -> None:
        done.append("answered")
        if fails:
            raise ValueError("A hook beside has failed.")

    replica = WatchedReplica.__new__(WatchedReplica)
    vars(replica).update(
        _beside=SimpleNamespace(finish=finish),
        _on_report=lambda *_: None,
        is_awaited=lambda: is_awaited,
        on_answered=lambda: done.append("sent"),
    )
    with suppress(ValueError):
        replica._inferred([], [], BatchReport(), lambda _: done.append("reported"))
    return done


def test_answers_wait_for_no_account_unless_requests_wait_for_the_next_batch() -> None:
    assert ended(is_awaited=False) == ["answered", "sent", "reported"]
    assert ended(is_awaited=True) == ["reported", "answered", "sent"]


def test_a_batch_is_accounted_for_also_where_its_answers_fail() -> None:
    assert ended(is_awaited=False, fails=True) == ["answered", "reported"]
