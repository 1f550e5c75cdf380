"""When a replica is started again, and when not for a while: with processes that are none."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fake_time import run_with_clock
from tests.processes.lives import LOAD_S, RESTART, FakeProcess, Lives
from tests.processes.serving import until

from mlserve import ConfigurationError
from mlserve.processes import messages
from mlserve.processes.board import Cause
from mlserve.processes.keeper import ReplicaState
from mlserve.testing import FakeClock


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlserve.processes.keeper.ChildProcess", FakeProcess)


def played(script: list[str], for_s: float, *, is_idempotent: bool = True) -> Lives:
    """Let a keeper run for some time."""
    clock = FakeClock()

    async def scenario() -> Lives:
        lives = Lives(clock, script, is_idempotent=is_idempotent)
        task = asyncio.get_running_loop().create_task(lives.keeper.keep(lambda: None))
        await asyncio.wait((task,), timeout=for_s)
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return lives

    return run_with_clock(clock, scenario())


SERVED_S = LOAD_S + 1.0


def test_a_process_that_dies_is_started_again_at_once() -> None:
    lives = played(["answer, then die with many"], 20.0)

    assert lives.pauses_s() == [SERVED_S]
    assert lives.keeper.state is ReplicaState.ENDED
    assert lives.keeper.n_failures == 1


def test_processes_that_die_without_an_answer_are_started_after_longer_and_longer_pauses() -> None:
    lives = played(["die with many"] * 5, 100.0)

    pauses = [round(pause - SERVED_S, 3) for pause in lives.pauses_s()]
    assert pauses == [0.0, 1.0, 2.0, 30.0, 30.0]


def test_processes_that_die_idle_count_as_those_that_die_with_many() -> None:
    assert (
        played(["die idle"] * 3, 50.0).pauses_s() == played(["die with many"] * 3, 50.0).pauses_s()
    )


def test_processes_that_die_in_later_loads_are_started_after_longer_pauses_too() -> None:
    lives = played(["answer, then die idle", *["die while loading"] * 3], 100.0)

    pauses = [round(pause, 3) for pause in lives.pauses_s()]
    assert pauses == [SERVED_S, LOAD_S + 1.0, LOAD_S + 2.0, LOAD_S + 30.0]


def test_a_request_that_ends_processes_alone_brings_no_pause() -> None:
    lives = played(["die with one"] * 6, 50.0)

    assert lives.pauses_s() == [SERVED_S] * 6
    assert lives.keeper.n_failures == 0


def test_a_model_whose_requests_are_answered_after_each_death_is_not_given_up() -> None:
    lives = played(["die with many"] * 8, 30.0, is_idempotent=False)

    pauses = [round(pause - SERVED_S, 3) for pause in lives.pauses_s()]
    assert pauses == [0.0, 1.0, *[2.0] * 4]
    assert not lives.keeper.is_given_up


def test_a_model_that_dies_idle_is_given_up_whatever_its_requests_are() -> None:
    lives = played(["die with many"] * 4 + ["die idle"] * 2, 40.0, is_idempotent=False)

    assert lives.keeper.is_given_up


def test_a_load_that_hangs_where_one_has_succeeded_is_ended() -> None:
    lives = played(["answer, then die with many", "hang"], 100.0)

    assert lives.pauses_s() == [SERVED_S, 60.0 + RESTART.backoff_s]
    assert lives.states[-2] is ReplicaState.SERVING


def test_an_answer_makes_up_for_what_was_before() -> None:
    script = ["die with many"] * 3 + ["answer, then die with many"] + ["die with many"]

    pauses = [round(pause - SERVED_S, 3) for pause in played(script, 100.0).pauses_s()]
    assert pauses == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_after_too_many_deaths_nobody_waits_any_more_until_one_answers() -> None:
    lives = played(["die idle"] * 4, 30.0)
    again = played(["die idle"] * 4 + ["answer, then die idle"], 60.0)

    assert lives.keeper.is_given_up
    assert "has died" in str(lives.keeper.reason)
    assert not again.keeper.is_given_up


def test_a_first_load_that_raises_is_not_tried_again() -> None:
    lives = played(["raise"], 50.0)

    error = lives.keeper.first_load.exception()
    assert isinstance(error, KeyError)
    assert error.args == ("weights",)
    assert "Traceback …" in error.__notes__[0]
    assert len(lives.processes) == 1


def test_a_process_that_cannot_be_configured_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(lives: Lives, number: int, process: Any) -> None:
        lives.processes.append(process)
        raise ConfigurationError("There is no device `cuda:1`.")

    monkeypatch.setattr(Lives, "launch", refuse)
    lives = played([], 50.0)

    assert isinstance(lives.keeper.first_load.exception(), ConfigurationError)
    assert len(lives.processes) == 1


def test_what_cannot_be_read_of_a_log_hides_nothing_that_comes_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unreadable:
        def unpack(self) -> Any:
            raise ImportError("No module named 'theirs'")

    async def say_more(lives: Lives, number: int, process: Any) -> None:
        lives.processes.append(process)
        process._on_messages([(messages.LOG, Unreadable()), (messages.READY, 1)])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Lives, "launch", say_more)
        lives = played([], 5.0)

    assert lives.keeper.first_load.result() == 1
    assert "replica.log.unreadable" in caplog.messages


def test_a_first_load_that_dies_is_tried_again() -> None:
    lives = played(["die while loading", "die while loading"], 50.0)

    assert lives.keeper.first_load.result() == 1
    assert lives.pauses_s() == [LOAD_S, LOAD_S + 1.0]


def test_a_first_load_that_dies_each_time_is_given_up() -> None:
    lives = played(["die while loading"] * 9, 100.0)

    error = lives.keeper.first_load.exception()
    assert isinstance(error, RuntimeError)
    assert "exit code 3" in str(error)
    assert len(lives.processes) == RESTART.failures


@pytest.mark.parametrize("is_awaited", [True, False])
def test_why_a_model_was_never_loaded_is_told_by_who_has_started_it(is_awaited: bool) -> None:
    """Who gives up waiting cancels what it waits for."""

    async def scenario() -> Lives:
        lives = Lives(FakeClock(), ["hang"])
        task = asyncio.get_running_loop().create_task(lives.keeper.keep(lambda: 0.01))
        if not is_awaited:
            lives.keeper.first_load.cancel()
        await until(lambda: lives.keeper.n_failures > 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return lives

    assert asyncio.run(scenario()).keeper.reason is None


def test_a_later_load_that_raises_is_tried_again() -> None:
    lives = played(["answer, then die idle", "raise", "raise"], 50.0)

    assert len(lives.processes) == 4
    assert ReplicaState.SERVING in lives.states[-3:]


def test_descriptors_that_are_lacking_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = [OSError(24, "Too many open files")] * 2

    class Scarce(FakeProcess):
        def __init__(self, on_messages: Callable[[list[tuple[Any, ...]]], None]) -> None:
            if lacking:
                raise lacking.pop()
            super().__init__(on_messages)

    monkeypatch.setattr("mlserve.processes.keeper.ChildProcess", Scarce)
    lives = played([], 20.0)

    assert lives.started_at == [1.0]
    assert lives.keeper.first_load.result() == 1


def test_a_replica_that_is_not_wanted_while_it_waits_is_not_started() -> None:
    clock = FakeClock()

    async def scenario() -> Lives:
        lives = Lives(clock, ["die while loading"] * 3)
        task = asyncio.get_running_loop().create_task(lives.keeper.keep(lambda: None))
        await asyncio.sleep(2 * LOAD_S + 0.5)
        assert lives.keeper.state is ReplicaState.WAITING
        lives.keeper.retire("fewer are needed")
        await task
        return lives

    lives = run_with_clock(clock, scenario())

    assert clock() == 2 * LOAD_S + 0.5
    assert len(lives.processes) == 2


@pytest.mark.parametrize("code", [0, -9])
def test_a_replica_that_is_not_wanted_while_it_loads_ends_without_a_word(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()

    async def scenario() -> Lives:
        lives = Lives(clock, [])
        task = asyncio.get_running_loop().create_task(lives.keeper.keep(lambda: None))
        await asyncio.sleep(1.0)
        lives.keeper.retire("fewer are needed")
        lives.processes[0].exit(code)
        await task
        return lives

    lives = run_with_clock(clock, scenario())

    assert lives.processes[0].told == [(messages.RETIRE, "fewer are needed")]
    assert lives.keeper.n_failures == 0
    assert not caplog.records


async def serving(clock: FakeClock) -> Lives:
    """Give a keeper whose process serves, and will not end by itself."""
    lives = Lives(clock, [])
    lives._tasks.append(asyncio.get_running_loop().create_task(lives.keeper.keep(lambda: None)))
    await asyncio.sleep(LOAD_S + 0.5)
    return lives


def watched(clock: FakeClock, look: Callable[[Lives], None]) -> Lives:
    async def scenario() -> Lives:
        lives = await serving(clock)
        look(lives)
        return lives

    return run_with_clock(clock, scenario())


def test_a_hook_that_is_overdue_ends_its_process() -> None:
    clock = FakeClock()

    def look(lives: Lives) -> None:
        lives.board.replicas[0].kill_at = clock() + 1.0
        lives.keeper.watch(clock() + 0.9)
        assert lives.processes[0].is_alive
        lives.keeper.watch(clock() + 1.1)

    lives = watched(clock, look)

    assert not lives.processes[0].is_alive
    assert lives.board.replicas[0].cause == Cause.HANG
    assert "did not return" in str(lives.keeper.reason)


def test_a_process_whose_event_loop_stands_still_is_ended_unless_a_hook_may_hold_it() -> None:
    clock = FakeClock()

    def look(lives: Lives) -> None:
        row = lives.board.replicas[0]
        row.beat += 1
        lives.keeper.watch(clock())
        row.kill_at = clock() + 60.0
        lives.keeper.watch(clock() + 20.0)
        row.kill_at = 0.0
        lives.keeper.watch(clock() + 24.9)
        assert lives.processes[0].is_alive
        row.beat += 1
        lives.keeper.watch(clock() + 26.0)
        assert lives.processes[0].is_alive
        lives.keeper.watch(clock() + 31.1)

    assert not watched(clock, look).processes[0].is_alive


def test_nobody_is_ended_for_the_time_in_which_the_watch_itself_stood_still() -> None:
    clock = FakeClock()

    def look(lives: Lives) -> None:
        lives.keeper.watch(clock())
        lives.keeper.skip_watch(clock() + 100.0)
        lives.keeper.watch(clock() + 100.1)
        assert lives.processes[0].is_alive

    watched(clock, look)


DEEDS = ["die idle", "die with one", "die with many", "answer, then die idle", "die while loading"]


@given(st.lists(st.sampled_from(DEEDS), max_size=12))
def test_whatever_processes_do_another_one_is_started_in_the_end(script: list[str]) -> None:
    # The first load is bound: nobody is served by a model that was never loaded.
    lives = played(["answer, then die idle", *script], 600.0)

    assert len(lives.processes) == len(script) + 2
    assert lives.keeper.state is ReplicaState.ENDED  # it was cancelled
    assert lives.states[-2:] == [ReplicaState.SERVING, ReplicaState.ENDED]
    assert max(lives.pauses_s()) <= SERVED_S + RESTART.max_backoff_s
