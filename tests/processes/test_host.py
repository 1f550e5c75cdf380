"""Which requests a replica's process begins, and when: with hooks that run while a test likes."""

import asyncio
import socket
import sys
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.processes.serving import until

from mlserve.batching.cost_model import CostModel
from mlserve.handler import Call
from mlserve.processes import messages
from mlserve.processes.board import Board, Mark
from mlserve.processes.frames import encode, pack
from mlserve.processes.host import Host
from mlserve.processes.watched import HostedJob
from mlserve.processes.wire import Link, connect


class FakePool:
    """Counts hooks that run."""

    def __init__(self) -> None:
        self.running: set[HostedJob] = set()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def n_running(self) -> int:
        return len(self.running)

    def begin(self, job: HostedJob) -> None:
        self.running.add(job)
        self.idle.clear()

    def end(self, job: HostedJob) -> None:
        self.running.discard(job)
        if not self.running:
            self.idle.set()

    async def wait_idle(self) -> None:
        await self.idle.wait()


class FakeQueue:
    occupied = 0


class FakeBatcher:
    n_batches = n_batched = n_splits = n_out_of_memory = 0

    def __init__(self) -> None:
        self.cost_model = CostModel()
        self.n_wakes = 0

    def wake(self) -> None:
        self.n_wakes += 1


class FakeLane:
    """Runs whatever it is given, at once."""

    def __init__(self) -> None:
        self.pool = FakePool()
        self.queue = FakeQueue()
        self.batcher = FakeBatcher()
        self.predicted: list[HostedJob] = []

    def reserve(self, job: HostedJob, *, is_stream: bool) -> None:
        """There is room."""

    def predict(self, job: HostedJob) -> None:
        self.predicted.append(job)

    def leave(self, job: HostedJob) -> None:
        """A hook that runs goes on."""


class Scene:
    """A host and the requests that it was given, which it begins here."""

    def __init__(self) -> None:
        self.lane = FakeLane()
        self.board = Board.create(1, 2)
        lane: Any = self.lane
        self.host = Host(lane, self.board, 0, has_costs=False)
        self.begun: list[HostedJob] = []
        self.waiting: list[HostedJob] = []
        self._n = 0

    def take(self, *, is_alone: bool = False, is_stream: bool = False) -> HostedJob:
        self._n += 1
        job = HostedJob(
            self,
            self._n,
            -1,
            Call(f"request {self._n}"),
            is_stream=is_stream,
            is_alone=is_alone,
            timeout_s=60.0,
            priority=0,
        )
        self.waiting.append(job)
        self.host.take(job)
        return job

    def begin(self, job: HostedJob) -> None:
        self.waiting.remove(job)
        self.begun.append(job)
        self.lane.pool.begin(job)

    def answer(self, job: HostedJob, value: Any = None, error: Any = None) -> None:
        self.lane.pool.end(job)
        self.begun.remove(job)
        self.host.forget(job)

    def cancel(self, job: HostedJob) -> None:
        """Its hook runs on, if it was begun."""
        (self.begun if job in self.begun else self.waiting).remove(job)
        self.host.forget(job)

    def mark(self, job: HostedJob, mark: Mark) -> None:
        """Nobody looks at the marks."""

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def close(self) -> None:
        await self.host.close(0.0)
        self.board.close()


def play(script: Any) -> None:
    async def scenario() -> None:
        scene = Scene()
        try:
            await script(scene)
        finally:
            await scene.close()

    asyncio.run(scenario())


def test_requests_are_begun_at_once_unless_one_has_to_run_alone() -> None:
    async def script(scene: Scene) -> None:
        first = scene.take()
        suspect = scene.take(is_alone=True)
        later = scene.take()
        assert scene.begun == [first]
        scene.answer(first)
        assert scene.begun == [suspect]
        scene.answer(suspect)
        assert scene.begun == [later]

    play(script)


def test_several_that_have_to_run_alone_run_one_after_the_other() -> None:
    async def script(scene: Scene) -> None:
        suspects = [scene.take(is_alone=True) for _ in range(3)]
        later = scene.take()
        for suspect in suspects:
            assert scene.begun == [suspect]
            scene.answer(suspect)
        assert scene.begun == [later]

    play(script)


def test_one_that_runs_alone_and_is_cancelled_is_alone_until_its_hook_returns() -> None:
    async def script(scene: Scene) -> None:
        suspect = scene.take(is_alone=True)
        later = [scene.take(), scene.take()]
        scene.cancel(suspect)
        await scene.settle()
        assert scene.begun == []
        scene.lane.pool.end(suspect)
        await scene.settle()
        assert scene.begun == later

    play(script)


def test_one_that_is_to_run_alone_waits_for_a_hook_whose_caller_has_left() -> None:
    async def script(scene: Scene) -> None:
        left = scene.take()
        suspect = scene.take(is_alone=True)
        scene.cancel(left)
        await scene.settle()
        assert scene.begun == []
        scene.lane.pool.end(left)
        await scene.settle()
        assert scene.begun == [suspect]

    play(script)


def test_one_that_is_cancelled_before_it_runs_alone_holds_nobody_up() -> None:
    async def script(scene: Scene) -> None:
        first = scene.take()
        suspect = scene.take(is_alone=True)
        later = scene.take()
        scene.cancel(suspect)
        assert scene.begun == [first, later]

    play(script)


def test_short_requests_do_not_wait_for_a_stream_with_one_that_has_to_run_alone() -> None:
    async def script(scene: Scene) -> None:
        stream = scene.take(is_stream=True)
        suspect = scene.take(is_alone=True)
        short, next_stream = scene.take(), scene.take(is_stream=True)
        assert scene.begun == [stream, short]
        scene.answer(stream)
        last = scene.take()
        assert scene.begun == [short]
        scene.answer(short)
        assert scene.begun == [suspect]
        scene.answer(suspect)
        assert scene.begun == [next_stream, last]

    play(script)


def test_the_board_says_what_the_host_has() -> None:
    async def script(scene: Scene) -> None:
        row = scene.board.replicas[0]
        first = scene.take()
        scene.take(is_alone=True)
        scene.take()
        await scene.settle()
        assert (row.held, row.cost, row.running) == (3, 3, 1)
        scene.cancel(first)
        await scene.settle()
        assert (row.held, row.cost, row.running) == (2, 2, 1)

    play(script)


async def connected(scene: Scene) -> Link:
    """Give the end of an HTTP process."""
    ours, theirs = socket.socketpair()
    await scene.host.connect(0, theirs)
    link = Link(lambda received: None, lambda: None)
    await connect(ours, link)
    return link


def submit(link: Link, number: int, slot: int) -> None:
    link.send((messages.SUBMIT, number, slot, 0, "id", 1e9, 60.0, 0, None, pack("payload")))


def test_marks_that_a_dead_process_has_left_stay_until_their_http_process_has_seen_them() -> None:
    async def script(scene: Scene) -> None:
        scene.board.marks(0, 0)[7] = Mark.INFER
        link = await connected(scene)
        assert scene.board.n_running(0) == 1
        link.close()

    play(script)


def test_a_hook_that_runs_on_does_not_touch_the_mark_of_the_next_request() -> None:
    async def script(scene: Scene) -> None:
        marks, jobs = scene.board.marks(0, 0), scene.lane.predicted
        link = await connected(scene)
        submit(link, 1, 3)
        await until(lambda: len(jobs) == 1)
        jobs[0].mark(Mark.INFER)
        assert marks[3] == Mark.INFER
        link.send((messages.CANCEL, 1))
        marks[3] = Mark.WAITING
        submit(link, 2, 3)
        await until(lambda: len(jobs) == 2)
        jobs[0].mark(Mark.POSTPROCESS)
        assert marks[3] == Mark.WAITING
        jobs[1].mark(Mark.INFER)
        assert marks[3] == Mark.INFER
        link.close()

    play(script)


def test_a_request_is_let_go_with_its_answer() -> None:
    async def script(scene: Scene) -> None:
        link = await connected(scene)
        submit(link, 1, 3)
        await until(lambda: len(scene.lane.predicted) == 1)
        scene.lane.predicted[0].result("answer")
        n_kept = sys.getrefcount(scene.lane.predicted[0])
        assert n_kept == 2  # the list, and the argument of the question
        link.close()

    play(script)


async def stuck(scene: Scene) -> socket.socket:
    """Give the end of an HTTP process that does not take the answer to its request."""
    ours, theirs = socket.socketpair()
    await scene.host.connect(1, theirs)
    message = (messages.SUBMIT, 1, 0, 0, "id", 1e9, 60.0, 0, None, pack("payload"))
    ours.sendall(b"".join(encode([message])))
    await until(lambda: len(scene.lane.predicted) == 1)
    scene.lane.predicted[0].result(b"x" * (8 << 20))
    await until(lambda: scene.host.is_congested)
    return ours


def test_a_process_that_does_not_take_its_answers_holds_batches_up_if_there_is_no_other() -> None:
    async def script(scene: Scene) -> None:
        end = await stuck(scene)
        n_wakes = scene.lane.batcher.n_wakes
        await until(lambda: scene.lane.batcher.n_wakes > n_wakes)
        assert scene.host.is_congested
        end.close()
        await until(lambda: not scene.host.is_congested)

    play(script)


def test_a_process_that_does_not_take_its_answers_holds_others_up_for_a_moment_only() -> None:
    async def script(scene: Scene) -> None:
        end = await stuck(scene)
        link = await connected(scene)
        assert scene.host.is_congested
        n_wakes = scene.lane.batcher.n_wakes
        await until(lambda: scene.lane.batcher.n_wakes > n_wakes)
        assert not scene.host.is_congested
        link.close()
        end.close()

    play(script)


def test_batches_that_were_held_up_for_a_process_begin_when_it_ends() -> None:
    async def script(scene: Scene) -> None:
        end = await stuck(scene)
        link = await connected(scene)
        n_wakes = scene.lane.batcher.n_wakes
        end.close()
        await until(lambda: not scene.host.is_congested)
        assert scene.lane.batcher.n_wakes > n_wakes
        link.close()

    play(script)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlserve.processes.guest._PATIENCE_S", 0.05)


class Hosting(RuleBasedStateMachine):
    """Whatever comes and goes: nothing runs beside what has to run alone; all get their turn."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._runner.run(self._open())

    async def _open(self) -> None:
        self.scene = Scene()

    def _settle(self) -> None:
        self._runner.run(self.scene.settle())

    def _on_loop(self, deed: Any) -> None:
        async def run() -> None:
            deed()
            await self.scene.settle()

        self._runner.run(run())

    @rule(is_alone=st.booleans(), is_stream=st.booleans())
    def take(self, is_alone: bool, is_stream: bool) -> None:
        self._on_loop(lambda: self.scene.take(is_alone=is_alone, is_stream=is_stream))

    @precondition(lambda self: self.scene.begun)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.scene.begun))
        self._on_loop(lambda: self.scene.answer(job))

    @precondition(lambda self: self.scene.begun or self.scene.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([*self.scene.begun, *self.scene.waiting]))
        self._on_loop(lambda: self.scene.cancel(job))

    @precondition(lambda self: self._zombies())
    @rule(data=st.data())
    def return_from_hook(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._zombies()))
        self._on_loop(lambda: self.scene.lane.pool.end(job))

    def _zombies(self) -> list[HostedJob]:
        running = self.scene.lane.pool.running - set(self.scene.begun)
        return sorted(running, key=lambda job: job.number)

    @invariant()
    def what_runs_alone_is_alone(self) -> None:
        running = self.scene.lane.pool.running
        if any(job.is_alone for job in running):
            assert len(running) == 1

    @invariant()
    def nothing_waits_for_nothing(self) -> None:
        if self.scene.waiting:
            assert self.scene.lane.pool.running
        if not any(job.is_alone for job in self.scene.waiting):
            has_zombie_suspect = any(job.is_alone for job in self.scene.lane.pool.running)
            assert has_zombie_suspect or not self.scene.waiting

    def teardown(self) -> None:
        for _ in range(200):
            for job in [*self._zombies()]:
                self._on_loop(lambda job=job: self.scene.lane.pool.end(job))
            if not self.scene.begun:
                break
            self._on_loop(lambda: self.scene.answer(self.scene.begun[0]))
        assert not self.scene.waiting
        self._runner.run(self.scene.close())
        self._runner.close()


TestHosting = Hosting.TestCase
TestHosting.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
