"""How the supervisor keeps its HTTP processes; `tests/cli/test_workers.py` has real ones."""

import asyncio
import errno
import socket
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.http.workers import _pause_s, _Worker
from mlserve.processes import messages

MAX_MISSED_BEATS = 30


class FakeProcess:
    pid = 1
    is_killed = False

    def kill(self) -> None:
        self.is_killed = True


class FakeSupervisor:
    n_serving = 0
    n_left = 0

    def __init__(self) -> None:
        self.ending = asyncio.Event()

    def boot(self, index: int) -> bytes:
        return b""

    def fds(self) -> tuple[int, ...]:
        return ()

    def note_serving(self) -> None:
        self.n_serving += 1

    def leave(self, worker: _Worker) -> None:
        self.n_left += 1
        if self.n_left == 2:
            self.ending.set()


@pytest.fixture
def process() -> FakeProcess:
    return FakeProcess()


@pytest.fixture
def worker(process: FakeProcess) -> _Worker:
    supervisor: Any = FakeSupervisor()
    worker, running = _Worker(0, supervisor), process
    worker.process = running  # type: ignore[assignment]  # a fake
    return worker


def test_a_process_whose_event_loop_hangs_is_killed(worker: _Worker, process: FakeProcess) -> None:
    worker._hear([(messages.SERVING,)])

    for _ in range(MAX_MISSED_BEATS):
        worker.look()
    assert not process.is_killed

    worker.look()
    assert process.is_killed


def test_a_process_that_is_heard_of_is_left_alone(worker: _Worker, process: FakeProcess) -> None:
    worker._hear([(messages.SERVING,)])

    for _ in range(3 * MAX_MISSED_BEATS):
        worker.look()
        worker._hear([(messages.BEAT,)])

    assert not process.is_killed


def test_a_process_that_does_not_serve_yet_may_take_its_time(
    worker: _Worker, process: FakeProcess
) -> None:
    for _ in range(3 * MAX_MISSED_BEATS):
        worker.look()

    assert not process.is_killed


def refuse(*_: Any, **__: Any) -> None:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def test_a_process_that_the_system_does_not_give_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subprocess, "Popen", refuse)
    supervisor: Any = FakeSupervisor()

    async def keep() -> None:
        async with asyncio.timeout(5):
            await _Worker(0, supervisor).keep()

    asyncio.run(keep())

    assert supervisor.n_left == 2
    assert [record.message for record in caplog.records] == ["worker.start.failed"] * 2


def test_a_process_for_which_there_is_no_descriptor_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor: Any = FakeSupervisor()
    n_refused = 0

    def socketpair() -> None:
        nonlocal n_refused
        n_refused += 1
        if n_refused == 2:
            supervisor.ending.set()
        raise OSError(errno.EMFILE, "Too many open files")

    async def keep() -> None:
        monkeypatch.setattr(socket, "socketpair", socketpair)
        async with asyncio.timeout(5):
            await _Worker(0, supervisor).keep()
        monkeypatch.undo()

    asyncio.run(keep())

    assert n_refused == 2


def test_the_first_process_that_ends_is_replaced_at_once() -> None:
    assert _pause_s(0) == _pause_s(1) == 0


@given(st.integers(1, 5000))
def test_pauses_grow_up_to_half_a_minute(n_short: int) -> None:
    assert _pause_s(n_short) <= _pause_s(n_short + 1) <= 30
    assert _pause_s(8) == _pause_s(5000) == 30
