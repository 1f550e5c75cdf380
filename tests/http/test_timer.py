"""A timer rings when it was last told to, whatever it was told before."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.http.timer import Timer


class FakeLoop:
    """A loop whose time stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[FakeHandle] = []

    def time(self) -> float:
        return self.now

    def call_later(self, wait_s: float, call: Callable[[], None]) -> "FakeHandle":
        handle = FakeHandle(self.now + wait_s, call)
        self.calls.append(handle)
        return handle

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [c for c in self.calls if not c.is_cancelled and c.at <= end]:
            first = min(due, key=lambda call: call.at)
            self.calls.remove(first)
            self.now = max(self.now, first.at)
            first.call()
        self.now = end

    @property
    def n_held(self) -> int:
        return sum(not call.is_cancelled for call in self.calls)


class FakeHandle:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


def made() -> tuple[Any, Timer, list[float]]:
    loop: Any = FakeLoop()
    return loop, Timer(loop), []


def test_it_rings_once_when_its_time_has_come() -> None:
    loop, timer, rung = made()

    timer.start(2.0, lambda: rung.append(loop.now))
    loop.advance(1.9)
    assert (rung, timer.is_running) == ([], True)
    loop.advance(10.0)

    assert (rung, timer.is_running) == ([2.0], False)


def test_a_timer_that_is_started_and_stopped_often_holds_one_call_of_the_loop() -> None:
    loop, timer, rung = made()

    for _ in range(1000):
        timer.start(5.0, lambda: rung.append(loop.now))
        loop.advance(0.001)
        timer.stop()

    assert loop.n_held == 1
    loop.advance(100.0)
    assert (rung, loop.n_held) == ([], 0)


def test_a_closed_timer_leaves_nothing_in_the_loop() -> None:
    loop, timer, rung = made()
    timer.start(1.0, lambda: rung.append(loop.now))

    timer.close()

    assert loop.n_held == 0
    loop.advance(5.0)
    assert rung == []


@given(st.lists(st.tuples(st.floats(0, 5), st.one_of(st.none(), st.floats(0, 10))), max_size=20))
def test_it_rings_as_a_timer_would_that_is_made_anew_each_time(
    steps: list[tuple[float, float | None]],
) -> None:
    loop, timer, rung = made()
    expected: list[float] = []
    due: float | None = None

    for pause_s, wait_s in steps:
        end = loop.now + pause_s
        if due is not None and due <= end:
            expected.append(due)
            due = None
        loop.advance(pause_s)
        if wait_s is None:
            timer.stop()
            due = None
        else:
            timer.start(wait_s, lambda: rung.append(loop.now))
            due = loop.now + wait_s
    loop.advance(20.0)
    expected += [due] if due is not None else []

    assert rung == pytest.approx(expected)


def test_it_rings_on_a_real_loop_too() -> None:
    async def rings() -> bool:
        rung = asyncio.Event()
        timer = Timer(asyncio.get_running_loop())
        timer.start(60.0, rung.set)
        timer.start(0.01, rung.set)
        async with asyncio.timeout(10):
            await rung.wait()
        return timer.is_running

    assert not asyncio.run(rings())
