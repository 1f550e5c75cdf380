"""Threads of our own and the way back from them to the event loop."""

import asyncio
import logging
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from mlserve.execution.worker import Mailbox, TaskSet, Worker

PATIENCE_S = 10.0
ResultT = TypeVar("ResultT")


def run(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    async def bounded() -> ResultT:
        async with asyncio.timeout(PATIENCE_S):
            return await main

    return asyncio.run(bounded())


def test_posted_calls_run_on_the_loop_in_order() -> None:
    async def scenario() -> list[tuple[int, bool]]:
        seen: list[tuple[int, bool]] = []
        mailbox = Mailbox(asyncio.get_running_loop())
        done = asyncio.Event()
        loop_thread = threading.current_thread()

        def note(number: int) -> None:
            seen.append((number, threading.current_thread() is loop_thread))

        def post_all() -> None:
            for number in range(100):
                mailbox.post(note, number)
            mailbox.post(done.set)

        thread = threading.Thread(target=post_all)
        thread.start()
        await done.wait()
        thread.join(PATIENCE_S)
        return seen

    assert run(scenario()) == [(number, True) for number in range(100)]


def test_what_gathered_is_delivered_with_one_wake_up() -> None:
    class CountingLoop(asyncio.SelectorEventLoop):
        n_wake_ups = 0

        def call_soon_threadsafe(  # type: ignore[override]  # one of its forms is enough here
            self, *args: Any, **kwargs: Any
        ) -> asyncio.Handle:
            self.n_wake_ups += 1
            return super().call_soon_threadsafe(*args, **kwargs)

    loop = CountingLoop()
    mailbox = Mailbox(loop)
    seen: list[int] = []

    for number in range(5):
        mailbox.post(seen.append, number)
    n_wake_ups = loop.n_wake_ups
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    assert n_wake_ups == 1
    assert seen == [0, 1, 2, 3, 4]


def test_a_call_that_raises_is_logged_and_holds_nobody_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise KeyError("broken")

    async def scenario() -> list[int]:
        seen: list[int] = []
        mailbox = Mailbox(asyncio.get_running_loop())
        mailbox.post(broken)
        mailbox.post(seen.append, 1)
        await asyncio.sleep(0)
        return seen

    assert run(scenario()) == [1]
    assert [record.getMessage() for record in caplog.records] == ["mailbox.deliver.failed"]


def test_a_result_that_comes_after_the_loop_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mlserve")
    loop = asyncio.new_event_loop()
    loop.close()

    Mailbox(loop).post(print)

    assert "a late result is dropped" in caplog.text


def test_a_worker_gives_what_a_function_returns_in_its_own_thread() -> None:
    async def scenario() -> list[str]:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        names = [await worker.call(lambda: threading.current_thread().name) for _ in range(2)]
        worker.close()
        return names

    assert run(scenario()) == ["test-worker"] * 2


def test_a_worker_raises_what_a_function_raised() -> None:
    def broken() -> None:
        raise KeyError("broken")

    async def scenario() -> None:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        with pytest.raises(KeyError, match="broken"):
            await worker.call(broken)
        assert await worker.call(lambda: 1) == 1
        worker.close()

    run(scenario())


@pytest.mark.parametrize("error", [SystemExit(1), StopIteration(1), asyncio.CancelledError()])
def test_what_a_future_cannot_carry_comes_as_a_runtime_error(error: BaseException) -> None:
    def broken() -> None:
        raise error

    async def scenario() -> None:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        with pytest.raises(RuntimeError, match=f"A hook raised {type(error).__name__}"):
            await worker.call(broken)
        worker.close()

    run(scenario())


def test_a_worker_runs_tasks_one_after_the_other_in_order() -> None:
    async def scenario() -> list[int]:
        seen: list[int] = []
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        for number in range(20):
            worker.submit(lambda number=number: seen.append(number))  # type: ignore[misc]
        await worker.call(lambda: None)
        worker.close()
        return seen

    assert run(scenario()) == list(range(20))


def test_a_task_that_raises_is_logged_and_its_thread_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise SystemExit

    async def scenario() -> int:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        worker.submit(broken)
        try:
            return await worker.call(lambda: 1)
        finally:
            worker.close()

    assert run(scenario()) == 1
    assert "worker.task.failed" in caplog.text


def test_a_waiter_that_left_gets_neither_a_result_nor_an_error() -> None:
    async def scenario() -> None:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        may_go_on = threading.Event()

        def slow() -> None:
            assert may_go_on.wait(PATIENCE_S)

        def broken() -> None:
            raise KeyError("late")

        waiting = [asyncio.ensure_future(worker.call(call)) for call in (slow, broken)]
        await asyncio.sleep(0)
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        may_go_on.set()
        assert await worker.call(lambda: 1) == 1
        worker.close()

    run(scenario())


def test_a_closed_worker_finishes_what_was_submitted_and_ends() -> None:
    async def scenario() -> None:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        threads: list[threading.Thread] = []
        worker.submit(lambda: threads.append(threading.current_thread()))
        worker.close()
        worker.close()
        await asyncio.to_thread(lambda: _join_by_name("test-worker"))
        assert len(threads) == 1
        assert threads[0].daemon

    run(scenario())


def _join_by_name(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_a_worker_that_never_ran_can_be_closed() -> None:
    async def scenario() -> None:
        Worker("test-worker", Mailbox(asyncio.get_running_loop())).close()

    run(scenario())


def test_an_idle_worker_keeps_nothing_of_its_last_task_alive() -> None:
    class Tensor:
        pass

    async def scenario() -> None:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        tensor = Tensor()
        seen = weakref.ref(tensor)
        worker.submit(lambda held=tensor: None)  # type: ignore[misc]
        del tensor
        await worker.call(lambda: None)
        assert seen() is None
        worker.close()

    run(scenario())


def test_tasks_are_cancelled_and_awaited_when_their_set_is_closed() -> None:
    async def scenario() -> list[str]:
        seen: list[str] = []
        tasks = TaskSet()

        async def endless() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("ended")

        tasks.spawn(endless())
        tasks.spawn(endless())
        await asyncio.sleep(0)
        await tasks.close()
        return seen

    assert run(scenario()) == ["ended", "ended"]


def test_a_task_that_fails_is_logged_and_one_that_ends_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken() -> None:
        raise KeyError("broken")

    async def fine() -> int:
        return 1

    async def scenario() -> int:
        tasks = TaskSet()
        failing, ending = tasks.spawn(broken()), tasks.spawn(fine())
        await asyncio.wait([failing, ending])
        await tasks.close()
        return int(ending.result())

    assert run(scenario()) == 1
    assert [record.getMessage() for record in caplog.records] == ["task.run.failed"]
