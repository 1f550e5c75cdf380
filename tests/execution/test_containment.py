"""What would end a thread or a task ends one request, wherever the handler's code brings it up."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel, field_validator
from tests.http.waiting import until

from mlserve import (
    Batching,
    DeadlineExceededError,
    MLServeError,
    Model,
    ModelError,
    ModelHandler,
    ModelServer,
    ServerSettings,
)

ResultT = TypeVar("ResultT")


def run(scenario: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(asyncio.wait_for(scenario, 10))


def answers_to(server: ModelServer, *values: int) -> list[Any]:
    """Ask a server's model one after the other, then for everything at once."""

    async def ask(model: Model, value: int) -> Any:
        try:
            return await model.predict(value, timeout_s=2)
        except MLServeError as exc:
            return type(exc)

    async def scenario() -> list[Any]:
        async with server.started():
            model = server.model_for("m")
            one_by_one = [await ask(model, value) for value in values]
            at_once = await asyncio.gather(*(ask(model, value) for value in values))
            assert model.statistics().running == 0
            return [*one_by_one, *at_once]

    return run(scenario())


class Ending(list[int]):
    """Outputs that cannot be looked at."""

    def __iter__(self) -> Iterator[int]:
        raise SystemExit(1)


class EndingKey:
    def __hash__(self) -> int:
        raise SystemExit(1)


class EndingNumber(int):
    def __index__(self) -> int:
        raise SystemExit(1)


class Picky(BaseModel):
    value: int

    @field_validator("value")
    @classmethod
    def check(cls, value: int) -> int:
        if value == 13:
            raise SystemExit(1)
        return value


class UnspeakableError(RuntimeError):
    def __str__(self) -> str:
        raise SystemExit(1)


class BadBatch(ModelHandler[int, int]):
    batching = Batching(max_size=8)

    def infer(self, inputs: list[int]) -> list[int]:
        return Ending(inputs) if 13 in inputs else inputs


class BadBatchAsync(BadBatch):
    async def infer(self, inputs: list[int]) -> list[int]:  # type: ignore[override]
        return Ending(inputs) if 13 in inputs else inputs


class BadKey(BadBatch):
    def batch_key(self, item: int) -> Any:
        return EndingKey() if item == 13 else 0

    def infer(self, inputs: list[int]) -> list[int]:
        return inputs


class BadCost(BadKey):
    def batch_key(self, item: int) -> Any:
        return 0

    def cost(self, item: int) -> int:
        return EndingNumber(1) if item == 13 else 1


class BadText(BadBatch):
    def infer(self, inputs: list[int]) -> list[int]:
        if 13 in inputs:
            raise UnspeakableError
        return inputs


@pytest.mark.parametrize("handler", [BadBatch, BadBatchAsync, BadKey, BadCost, BadText])
def test_what_ends_a_thread_outside_a_hooks_call_fails_one_request_only(
    handler: type[ModelHandler[int, int]],
) -> None:
    answers = answers_to(ModelServer().add("m", handler), 1, 13, 2)

    assert answers == [1, ModelError, 2] * 2


class Validated(ModelHandler[int, Picky]):
    batching = Batching(max_size=8)

    def infer(self, inputs: list[int]) -> list[Any]:
        return [{"value": value} for value in inputs]


class ValidatedInThread(Validated):
    def postprocess(self, output: Any) -> Picky:
        return output  # type: ignore[no-any-return]


class ValidatedAsync(Validated):
    async def postprocess(self, output: Any) -> Picky:
        return output  # type: ignore[no-any-return]


@pytest.mark.parametrize("handler", [Validated, ValidatedInThread, ValidatedAsync])
def test_what_ends_a_thread_in_the_check_of_a_response_fails_one_request_only(
    handler: type[Validated],
) -> None:
    answers = answers_to(ModelServer().add("m", handler), 1, 13, 2)

    assert answers == [Picky(value=1), ModelError, Picky(value=2)] * 2


class Sick(ModelHandler[int, int]):
    """Its first copy is unhealthy, in a way that would end the event loop."""

    error: BaseException
    n_loads = 0

    def load(self) -> None:
        type(self).n_loads += 1
        self.number = self.n_loads

    def infer(self, inputs: list[int]) -> list[int]:
        return inputs

    async def health(self) -> None:
        if self.number == 1:
            raise self.error


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError])
def test_a_replica_is_replaced_whatever_its_async_health_hook_raises(
    kind: type[BaseException],
) -> None:
    handler: type[Sick] = type("SickOnce", (Sick,), {"error": kind()})
    server = ModelServer(settings=ServerSettings(health_period_s=0.01)).add("m", handler)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            await asyncio.to_thread(until, lambda: handler.n_loads == 2)
            await asyncio.to_thread(until, lambda: model.state == "ready")
            assert await model.predict(1, timeout_s=2) == 1

    run(scenario())


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError])
def test_the_threads_of_a_replica_end_whatever_its_async_unload_hook_raises(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Clinging(ModelHandler[int, int]):
        def infer(self, inputs: list[int]) -> list[int]:
            return inputs

        async def unload(self) -> None:
            raise kind

    server = ModelServer().add("clinging", Clinging)

    async def scenario() -> None:
        async with server.started():
            assert await server.model_for("clinging").predict(1) == 1

    run(scenario())

    until(lambda: not any("mlserve-clinging" in thread.name for thread in threading.enumerate()))
    assert "hook.unload.failed" in caplog.text


class Around(ModelHandler[int, int]):
    """Async where it loads, so that no thread runs before the first request."""

    async def load(self) -> None:
        pass

    def preprocess(self, request: int) -> int:
        return request

    def infer(self, inputs: list[int]) -> list[int]:
        return inputs

    def postprocess(self, output: int) -> int:
        return output


class AfterOnly(Around):
    async def preprocess(self, request: int) -> int:  # type: ignore[override]
        return request


@pytest.mark.parametrize(
    ("handler", "thread"), [(Around, "-0-hooks"), (Around, "-0"), (AfterOnly, "-0-hooks")]
)
def test_a_thread_that_cannot_start_fails_a_request_and_is_tried_again(
    handler: type[Around], thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, threading.Event()

    def start_or_not(self: threading.Thread) -> None:
        if self.name == f"mlserve-m{thread}" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)

    answers = answers_to(ModelServer().add("m", handler), 1, 2)

    assert refused.is_set()
    assert answers == [ModelError, 2, 1, 2]


def test_an_async_postprocess_is_not_run_for_who_left() -> None:
    gate, begun = threading.Event(), threading.Event()
    finished: list[int] = []

    class Held(ModelHandler[int, int]):
        def infer(self, inputs: list[int]) -> list[int]:
            begun.set()
            assert gate.wait(10)
            return inputs

        async def postprocess(self, output: int) -> int:
            finished.append(output)
            return output

    server = ModelServer().add("m", Held)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            late = asyncio.ensure_future(model.predict(1, timeout_s=0.05))
            assert await asyncio.to_thread(begun.wait, 5)
            with pytest.raises(DeadlineExceededError):
                await late
            gate.set()
            assert await model.predict(2) == 2

    run(scenario())

    assert finished == [2]
