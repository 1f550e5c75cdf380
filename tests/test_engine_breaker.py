"""A model that breaks while it serves: suspected, tried with its own examples, brought back."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from tests.http.waiting import until

from mlserve import (
    Batching,
    Model,
    ModelError,
    ModelFailedError,
    ModelHandler,
    ModelServer,
    Replicas,
    Restart,
)

ResultT = TypeVar("ResultT")

RESTART = Restart(failures=3, backoff_s=0.02, max_backoff_s=0.02)


def run(scenario: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(asyncio.wait_for(scenario, 20))


class Fragile(ModelHandler[int, int]):
    """Fails on negative numbers, and on everything while it is broken."""

    replicas = Replicas(restart=RESTART)

    def __init__(self) -> None:
        self.is_broken = threading.Event()

    def examples(self) -> list[int]:
        return [1]

    def infer(self, inputs: list[int]) -> list[int]:
        if self.is_broken.is_set() or min(inputs) < 0:
            raise OSError("the device does not answer")
        return inputs


class NoExamples(Fragile):
    def examples(self) -> list[int]:
        return []


async def fail(model: Model, n: int, value: int = 1) -> None:
    for _ in range(n):
        with pytest.raises(ModelError):
            await model.predict(value)


async def state(model: Model, wanted: str) -> None:
    await asyncio.to_thread(until, lambda: model.state == wanted)


def test_a_model_that_fails_on_its_own_examples_is_taken_out_and_brought_back() -> None:
    handler = Fragile()
    server = ModelServer().add("m", handler)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            handler.is_broken.set()
            await fail(model, 3)
            await state(model, "failed")
            reason = model.engine.lifecycle.reason or ""
            assert "fails on the handler's own examples" in reason
            with pytest.raises(ModelFailedError):
                await model.predict(1)
            handler.is_broken.clear()
            await state(model, "ready")
            assert await model.predict(5) == 5

    run(scenario())


def test_no_client_can_take_a_model_down_with_bad_inputs() -> None:
    server = ModelServer().add("m", Fragile())

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            await fail(model, 20, -1)
            assert model.state == "ready"
            assert await model.predict(5) == 5

    run(scenario())


def test_without_examples_nothing_is_ever_judged() -> None:
    handler = NoExamples()
    server = ModelServer().add("m", handler)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            handler.is_broken.set()
            await fail(model, 20)
            handler.is_broken.clear()
            assert await model.predict(5) == 5

    run(scenario())


def test_one_good_batch_clears_the_suspicion() -> None:
    handler = Fragile()
    server = ModelServer().add("m", handler)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            for _ in range(5):
                handler.is_broken.set()
                await fail(model, 2)
                handler.is_broken.clear()
                assert await model.predict(5) == 5

    run(scenario())


def test_a_broken_replica_leaves_the_work_to_the_others() -> None:
    class OneBreaks(ModelHandler[int, int]):
        broken = threading.Event()

        def examples(self) -> list[int]:
            return [1]

        def infer(self, inputs: list[int]) -> list[int]:
            if self.context.replica == 0 and self.broken.is_set():
                raise OSError("gone")
            return inputs

    server = ModelServer().add("m", OneBreaks, replicas=Replicas(count=2, restart=RESTART))

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            OneBreaks.broken.set()
            while model.statistics().replicas == 2:
                await asyncio.gather(model.predict(1), return_exceptions=True)
            assert [await model.predict(number) for number in range(20)] == list(range(20))
            assert model.state == "ready"
            OneBreaks.broken.clear()
            await asyncio.to_thread(until, lambda: model.statistics().replicas == 2)

    run(scenario())


def test_what_waits_when_the_last_replica_breaks_is_answered_at_once() -> None:
    gate, begun = threading.Event(), threading.Event()

    class Stuck(Fragile):
        def infer(self, inputs: list[int]) -> list[int]:
            if self.is_broken.is_set():
                begun.set()
                assert gate.wait(10)
            return super().infer(inputs)

    handler = Stuck()
    restart = Restart(failures=1, backoff_s=60, max_backoff_s=60)
    server = ModelServer().add(
        "m", handler, batching=Batching(max_size=1), replicas=Replicas(restart=restart)
    )

    async def scenario() -> list[Any]:
        async with server.started():
            model = server.model_for("m")
            handler.is_broken.set()
            calls = [asyncio.ensure_future(model.predict(number)) for number in range(5)]
            assert await asyncio.to_thread(begun.wait, 5)
            gate.set()
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = run(scenario())

    kinds = [type(answer) for answer in answers]
    assert set(kinds) <= {ModelError, ModelFailedError}
    assert ModelFailedError in kinds


class Busy(Fragile):
    """Stands at gates: `infer` while it is broken, `preprocess` of 77, and the stream of 9."""

    batching = Batching(max_size=1)
    replicas = Replicas(max_streams=1, restart=Restart(failures=1, backoff_s=60, max_backoff_s=60))

    def __init__(self) -> None:
        super().__init__()
        self.may_fail, self.may_prepare, self.may_end = (threading.Event() for _ in range(3))

    def preprocess(self, request: int) -> int:
        if request == 77:
            assert self.may_prepare.wait(10)
        return request

    def infer(self, inputs: list[int]) -> list[int]:
        if self.is_broken.is_set():
            assert self.may_fail.wait(10)
        return super().infer(inputs)

    def stream(self, item: int) -> Iterator[int]:
        if item == 9:
            assert self.may_end.wait(10)
        yield item


async def first_chunk(model: Model, value: int) -> int:
    async for chunk in model.stream(value):
        return int(chunk)
    raise AssertionError("There was no chunk.")


def test_streams_that_wait_and_what_is_in_preprocess_when_it_breaks_are_answered_at_once() -> None:
    handler = Busy()
    server = ModelServer().add("m", handler)

    async def scenario() -> list[Any]:
        async with server.started():
            model = server.model_for("m")
            runs = asyncio.ensure_future(first_chunk(model, 9))
            await asyncio.to_thread(until, lambda: model.statistics().running == 1)
            waits = asyncio.ensure_future(first_chunk(model, 2))
            await asyncio.to_thread(until, lambda: model.statistics().queued == 1)
            handler.is_broken.set()
            fails = asyncio.ensure_future(model.predict(3))
            await asyncio.to_thread(until, lambda: model.statistics().running == 2)
            inside = [
                asyncio.ensure_future(model.predict(77)),
                asyncio.ensure_future(first_chunk(model, 77)),
            ]
            await asyncio.to_thread(until, lambda: model.statistics().in_flight == 5)
            handler.may_fail.set()
            refused = [*await asyncio.gather(fails, waits, return_exceptions=True)]
            handler.may_prepare.set()
            refused += [*await asyncio.gather(*inside, return_exceptions=True)]
            assert model.statistics().queued == 0
            handler.may_end.set()
            return [await runs, *refused]

    answer, failed, *refused = run(scenario())

    assert answer == 9
    assert type(failed) is ModelError
    assert [type(error) for error in refused] == [ModelFailedError] * 3
    assert len({str(error) for error in refused}) == 1
    assert "fails on the handler's own examples" in str(refused[0])
