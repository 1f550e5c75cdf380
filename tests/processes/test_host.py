"""Which requests a replica's process begins, and when: with hooks that run while a test likes."""

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.http.waiting import until
from tests.processes.hosting import Scene, play

from mlserve.processes.watched import HostedJob


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


def test_the_board_knows_of_answers_when_they_are_sent() -> None:
    async def script(scene: Scene) -> None:
        row = scene.board.replicas[0]
        first, _ = scene.take(), scene.take()
        await scene.settle()
        scene.answer(first)
        scene.host.flush()
        assert (row.held, row.running) == (1, 1)

    play(script)


def test_the_board_knows_of_batches_a_moment_later_and_at_the_end() -> None:
    async def script(scene: Scene) -> None:
        row, batcher = scene.board.replicas[0], scene.lane.batcher
        scene.answer(scene.take())
        batcher.n_batches, batcher.n_splits = 1, 2
        scene.host.flush()
        await asyncio.to_thread(until, lambda: row.batches == 1)
        assert (row.batches, row.splits) == (1, 2)
        batcher.n_batches = 2
        await scene.host.close(1.0)
        assert row.batches == 2

    play(script)


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
