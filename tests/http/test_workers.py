"""How the supervisor keeps its HTTP processes; `tests/cli/test_workers.py` has real ones."""

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

    def note_serving(self) -> None:
        self.n_serving += 1


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


def test_the_first_process_that_ends_is_replaced_at_once() -> None:
    assert _pause_s(0) == _pause_s(1) == 0


@given(st.integers(1, 1000))
def test_pauses_grow_up_to_half_a_minute(n_short: int) -> None:
    assert _pause_s(n_short) <= _pause_s(n_short + 1) <= 30
    assert _pause_s(8) == 30
