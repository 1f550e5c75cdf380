"""Stages are driven alike in a thread and from the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

from mlserve.contract import read_contract
from mlserve.execution.stages import Step, as_exception, run_here, run_mixed
from mlserve.execution.worker import Mailbox, Worker
from mlserve.handler import ModelHandler


class Sync(ModelHandler[int, int, int]):
    """Its hooks say in which thread they ran."""

    n_closed = 0

    def preprocess(self, request: int) -> str:
        return threading.current_thread().name

    def infer(self, inputs: list[int]) -> list[int]:
        raise KeyError("broken")

    def stream(self, item: int) -> Iterator[int]:
        try:
            yield from range(item)
        finally:
            self.n_closed += 1


class Async(ModelHandler[int, int, int]):
    """Its hooks run on the event loop."""

    n_closed = 0

    async def preprocess(self, request: int) -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    async def infer(self, inputs: list[int]) -> list[int]:
        raise KeyError("broken")

    def postprocess(self, output: int) -> str:
        return threading.current_thread().name

    async def stream(self, item: int) -> AsyncIterator[int]:
        try:
            for number in range(item):
                yield number
        finally:
            self.n_closed += 1


def step(cls: type[Any], name: str, *args: Any) -> Step:
    return Step(read_contract(cls).hooks[name], args)


def stage(*steps: Step) -> Generator[Step, Any, list[Any]]:
    """Call each hook and note what came back, exceptions as well."""
    results: list[Any] = []
    for one in steps:
        try:
            results.append((yield one))
        except Exception as exc:
            results.append(exc)
    return results


def run_on_loop(steps: Generator[Step, Any, list[Any]], handler: Any) -> list[Any]:
    async def main() -> list[Any]:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        try:
            async with asyncio.timeout(10):
                return await run_mixed(steps, handler, worker)
        finally:
            worker.close()

    return asyncio.run(main())


def test_a_stage_gets_what_its_hooks_return_and_raise() -> None:
    steps = stage(step(Sync, "preprocess", 1), step(Sync, "infer", [1]))

    name, error = run_here(steps, Sync())

    assert name == threading.current_thread().name
    assert isinstance(error, KeyError)


def test_a_stage_without_hooks_gives_its_value() -> None:
    assert run_here(stage(), Sync()) == []
    assert run_on_loop(stage(), Sync()) == []


def test_what_a_stage_does_not_catch_passes() -> None:
    def careless() -> Generator[Step, Any, None]:
        yield step(Sync, "infer", [1])

    with pytest.raises(KeyError, match="broken"):
        run_here(careless(), Sync())


def test_from_the_loop_sync_hooks_run_in_the_workers_thread() -> None:
    steps = stage(step(Sync, "preprocess", 1), step(Sync, "infer", [1]))

    name, error = run_on_loop(steps, Sync())

    assert name == "test-worker"
    assert isinstance(error, KeyError)


def test_from_the_loop_async_hooks_run_on_it() -> None:
    steps = stage(
        step(Async, "preprocess", 1), step(Async, "infer", [1]), step(Async, "postprocess", 1)
    )

    on_loop, error, in_thread = run_on_loop(steps, Async())

    assert on_loop == threading.current_thread().name
    assert isinstance(error, KeyError)
    assert in_thread == "test-worker"


def test_a_hook_that_nobody_wrote_is_called_where_the_stage_runs() -> None:
    assert run_on_loop(stage(step(Async, "examples")), Async()) == [[]]


@pytest.mark.parametrize(("n_chunks", "first"), [(2, 0), (0, None)])
def test_a_stream_gives_its_first_chunk_and_is_closed(n_chunks: int, first: int | None) -> None:
    sync, in_worker, on_loop = Sync(), Sync(), Async()

    assert run_here(stage(step(Sync, "stream", n_chunks)), sync) == [first]
    assert run_on_loop(stage(step(Sync, "stream", n_chunks)), in_worker) == [first]
    assert run_on_loop(stage(step(Async, "stream", n_chunks)), on_loop) == [first]

    assert [sync.n_closed, in_worker.n_closed, on_loop.n_closed] == [1, 1, 1]


def test_a_stream_may_be_any_iterable() -> None:
    class Listing(ModelHandler[int, int, int]):
        def stream(self, item: int) -> list[int]:
            return [item, item]

    assert run_here(stage(step(Listing, "stream", 5)), Listing()) == [5]


@pytest.mark.parametrize("error", [SystemExit(2), asyncio.CancelledError(), GeneratorExit()])
def test_what_would_end_a_thread_or_task_is_the_failure_of_its_hook(error: BaseException) -> None:
    class Exits(ModelHandler[int, int]):
        def preprocess(self, request: int) -> int:
            raise error

        async def infer(self, inputs: list[int]) -> list[int]:
            raise error

    sync, mixed = step(Exits, "preprocess", 1), step(Exits, "infer", [1])

    (here,) = run_here(stage(sync), Exits())
    in_worker, on_loop = run_on_loop(stage(sync, mixed), Exits())

    for failure in (here, in_worker, on_loop):
        assert isinstance(failure, RuntimeError)
        assert str(failure) == f"A hook raised {type(error).__name__}."


def test_an_exception_is_itself() -> None:
    error = KeyError("x")

    assert as_exception(error) is error


def test_a_cancelled_stage_is_cancelled_and_not_its_hook() -> None:
    class Slow(ModelHandler[int, int]):
        async def infer(self, inputs: list[int]) -> list[int]:
            await asyncio.Event().wait()
            return inputs

    async def main() -> None:
        worker = Worker("test-worker", Mailbox(asyncio.get_running_loop()))
        task = asyncio.ensure_future(run_mixed(stage(step(Slow, "infer", [1])), Slow(), worker))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
