"""A model as user code sees it."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel
from tests.http.waiting import until

from mlserve import (
    Call,
    ConfigurationError,
    DrainingError,
    Limits,
    Model,
    ModelHandler,
    ModelNotReadyError,
    ModelServer,
    SchemaViolationError,
)
from mlserve.testing import Echo, EchoHandler

ResultT = TypeVar("ResultT")


def run(scenario: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(asyncio.wait_for(scenario, 10))


class Budget(ModelHandler[str, float]):
    def infer(self, inputs: list[str], calls: list[Call]) -> list[float]:
        return [call.remaining_s for call in calls]


@pytest.mark.parametrize("request_", [Echo(text="a"), {"text": "a"}])
def test_a_request_may_be_an_instance_or_what_can_be_validated(request_: Any) -> None:
    server = ModelServer().add("m", EchoHandler)

    async def scenario() -> Any:
        async with server.started():
            return await server.model_for("m").predict(request_)

    assert run(scenario()) == Echo(text="a")


def test_a_wrong_request_says_where_it_is_wrong_and_not_what_it_is() -> None:
    server = ModelServer().add("m", EchoHandler)

    async def scenario() -> SchemaViolationError:
        async with server.started():
            with pytest.raises(SchemaViolationError) as caught:
                await server.model_for("m").predict({"text": ["canary"]})
            with pytest.raises(SchemaViolationError):
                await anext(server.model_for("m").stream({}))
            return caught.value

    error = run(scenario())

    assert error.n_errors == 1
    assert error.param == "text"
    assert "canary" not in str(error) + str(error.details)


@pytest.mark.parametrize(("timeout_s", "longest"), [(None, 7), (3, 3), (100, 7)])
def test_a_timeout_may_shorten_the_budget_and_never_lengthen_it(
    timeout_s: float | None, longest: float
) -> None:
    server = ModelServer().add("m", Budget, limits=Limits(timeout_s=7))

    async def scenario() -> float:
        async with server.started():
            return float(await server.model_for("m").predict("", timeout_s=timeout_s))

    assert longest - 1 < run(scenario()) <= longest


def test_what_a_handler_cannot_do_is_refused() -> None:
    class Talker(ModelHandler[str, str]):
        def stream(self, item: str) -> Iterator[str]:
            yield item

    server = ModelServer().add("budget", Budget).add("talker", Talker)

    async def scenario() -> None:
        async with server.started():
            with pytest.raises(ConfigurationError, match="has no `infer`"):
                await server.model_for("talker").predict("")
            with pytest.raises(ConfigurationError, match="has no `stream`"):
                await anext(server.model_for("budget").stream(""))

    run(scenario())


def test_a_model_that_is_not_loaded_is_not_ready_and_one_that_was_is_draining() -> None:
    server = ModelServer().add("m", EchoHandler)
    model = server.model_for("m")

    async def scenario() -> None:
        with pytest.raises(ModelNotReadyError):
            await model.predict({"text": ""})
        async with server.started():
            pass
        with pytest.raises(DrainingError):
            await model.predict({"text": ""})

    run(scenario())

    assert model.state == "stopped"


def test_leaving_a_stream_closes_the_generator() -> None:
    closed: list[bool] = []

    class Endless(ModelHandler[str, int]):
        def stream(self, item: str) -> Iterator[int]:
            try:
                yield from range(10**9)
            finally:
                closed.append(True)

    server = ModelServer().add("m", Endless)

    async def scenario() -> list[int]:
        async with server.started():
            chunks = server.model_for("m").stream("")
            first = [await anext(chunks) for _ in range(3)]
            await chunks.aclose()  # type: ignore[attr-defined]  # an async generator
            await asyncio.to_thread(until, lambda: bool(closed))
            return first

    assert run(scenario()) == [0, 1, 2]
    assert closed == [True]


def test_statistics_count_what_was_done() -> None:
    server = ModelServer().add("m", EchoHandler)
    model = server.model_for("m")

    async def scenario() -> None:
        async with server.started():
            await asyncio.gather(*(model.predict({"text": str(n)}) for n in range(10)))

    run(scenario())

    statistics = model.statistics()
    assert statistics.requests == 10
    assert 1 <= statistics.batches <= 10
    assert statistics.mean_batch_size == 10 / statistics.batches
    assert (statistics.in_flight, statistics.queued) == (0, 0)


def test_a_model_shows_what_it_is() -> None:
    model: Model = ModelServer().add("m", EchoHandler, version="v3").model_for("m")

    assert (model.name, model.version, model.state) == ("m", "v3", "unloaded")
    assert repr(model) == "<Model m/v3 unloaded>"


def test_models_of_the_same_handler_do_not_share_their_loaded_state() -> None:
    class Named(ModelHandler[str, str]):
        def load(self) -> None:
            self.mark = self.context.name

        def infer(self, inputs: list[str]) -> list[str]:
            return [self.mark for _ in inputs]

    server = ModelServer().add("a", Named).add("b", Named)

    async def scenario() -> list[str]:
        async with server.started():
            return [await server.model_for(name).predict("") for name in ("a", "b")]

    assert run(scenario()) == ["a", "b"]


def test_answers_are_instances_of_the_response_type() -> None:
    class Score(BaseModel):
        value: float

    class Scorer(ModelHandler[str, Score]):
        def infer(self, inputs: list[str]) -> list[dict[str, Any]]:
            return [{"value": "0.5", "more": 1} for _ in inputs]

    server = ModelServer().add("m", Scorer)

    async def scenario() -> Any:
        async with server.started():
            return await server.model_for("m").predict("")

    assert run(scenario()) == Score(value=0.5)
