"""Jobs whose time is over are told so, together with those that end in the same moment."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve import Call
from mlserve.execution.deadlines import Deadlines
from mlserve.job import Job

PATIENCE_S = 10.0


def made(timeout_s: float) -> Job:
    return Job("payload", Call("id", timeout_s=timeout_s), timeout_s=timeout_s)


class Watched:
    """Deadlines, and when which job was told that its time is over."""

    def __init__(self, on_end: Callable[[Job], None] = lambda job: None) -> None:
        self.deadlines = Deadlines(time.monotonic, self._expire)
        self.ended: dict[Job, float] = {}
        self._on_end = on_end
        self._changed = asyncio.Event()

    def _expire(self, job: Job) -> None:
        self.ended[job] = time.monotonic()
        self._changed.set()
        self._on_end(job)

    async def until(self, n: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ended) < n:
                self._changed.clear()
                await self._changed.wait()


@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=20))
@settings(max_examples=15)
def test_no_job_ends_before_its_time_and_each_ends_once(timeouts_s: list[float]) -> None:
    async def scenario() -> None:
        watched = Watched()
        jobs = [made(timeout_s) for timeout_s in timeouts_s]
        for job in jobs:
            watched.deadlines.add(job)
        await watched.until(len(jobs))

        early_s = max(job.deadline - watched.ended[job] for job in jobs)
        assert early_s < 0.002  # the loop counts in milliseconds
        assert repr(watched.deadlines) == "<Deadlines of 0 jobs>"

    asyncio.run(scenario())


def test_a_job_that_was_taken_away_does_not_end_and_leaves_nothing_in_the_loop() -> None:
    async def scenario() -> list[Job]:
        watched = Watched()
        kept, gone = made(0.01), made(0.01)
        for job in (kept, gone):
            watched.deadlines.add(job)
        watched.deadlines.remove(gone)
        watched.deadlines.remove(gone)
        await watched.until(1)
        watched.deadlines.remove(kept)
        assert repr(watched.deadlines) == "<Deadlines of 0 jobs>"
        return [job for job in (kept, gone) if job in watched.ended]

    assert len(asyncio.run(scenario())) == 1


def test_jobs_that_end_within_the_same_moment_share_one_timer_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> int:
        loop, calls = asyncio.get_running_loop(), []
        call_later = loop.call_later

        def counted(*arguments: Any) -> asyncio.TimerHandle:
            calls.append(arguments)
            return call_later(*arguments)

        monkeypatch.setattr(loop, "call_later", counted)
        deadlines = Deadlines(lambda: 0.0, lambda job: None)
        jobs = [Job(0, Call(timeout_s=60.0, clock=lambda: 0.001), timeout_s=60) for _ in range(99)]
        for job in jobs:
            deadlines.add(job)
        for job in jobs:
            deadlines.remove(job)
        return len(calls)

    assert asyncio.run(scenario()) == 1


def test_the_end_of_one_job_may_take_another_one_of_the_same_moment_away() -> None:
    async def scenario() -> int:
        pair: list[Job] = []

        def take_the_other(job: Job) -> None:
            for other in pair:
                watched.deadlines.remove(other)

        watched = Watched(take_the_other)
        pair += [made(0.01), made(0.01)]
        pair[1].call.deadline = pair[0].call.deadline
        for job in pair:
            watched.deadlines.add(job)
        await watched.until(1)
        return len(watched.ended)

    assert asyncio.run(scenario()) == 1


def test_a_job_whose_end_fails_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(job: Job) -> None:
        raise RuntimeError("This one cannot be told.")

    async def scenario() -> int:
        watched = Watched(fail)
        for _ in range(5):
            watched.deadlines.add(made(0.01))
        await watched.until(5)
        return len(watched.ended)

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(scenario()) == 5
    assert "deadline.expire.failed" in caplog.text
