"""Sequences that enter, advance together and leave: through a model whose replica is in threads."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
from tests.execution.stepping import Stepping, left_at_the_end

from mlserve import (
    Advance,
    ConfigurationError,
    InvalidInputError,
    Limits,
    Model,
    ModelError,
    ModelServer,
    OutOfMemoryError,
    Replicas,
    SteppedHandler,
)

ResultT = TypeVar("ResultT")


def play(
    scenario: Callable[[Model], Awaitable[ResultT]], handler: Any = Stepping, **options: Any
) -> ResultT:
    """Run a scenario with a model that is loaded."""

    async def run() -> ResultT:
        server = ModelServer().add("m", handler, **options)
        async with asyncio.timeout(20.0), server.started():
            return await scenario(server.model_for("m"))

    return asyncio.run(run())


async def into(chunks: list[Any], stream: AsyncIterator[Any]) -> None:
    async for chunk in stream:
        chunks.append(chunk)  # noqa: PERF401 - what came before an error is there


async def all_of(model: Model, *orders: Any) -> list[Any]:
    answers = (model.predict(order) for order in orders)
    return await asyncio.gather(*answers, return_exceptions=True)


def test_a_request_is_answered_with_its_chunks_or_gets_them_one_by_one() -> None:
    async def scenario(model: Model) -> tuple[Any, list[Any]]:
        return await model.predict("count:3"), [chunk async for chunk in model.stream("count:4")]

    assert play(scenario) == ([0, 1, 2], [0, 1, 2, 3])


def test_requests_run_together_and_no_more_than_there_are_slots() -> None:
    handler = Stepping()

    async def scenario(model: Model) -> list[Any]:
        return await all_of(model, *["count:30"] * 10)

    assert play(scenario, handler) == [list(range(30))] * 10
    assert max(handler.together) == handler.slots
    assert not handler.running


def test_a_request_enters_while_others_run() -> None:
    handler = Stepping()

    async def scenario(model: Model) -> list[Any]:
        async with left_at_the_end(model.stream("count:1000000")) as long:
            await anext(long)
            return [await model.predict("count:3"), await anext(long)]

    short, chunk = play(scenario, handler)
    assert short == [0, 1, 2]
    assert chunk == 1
    assert handler.evicted == ["count"]


def test_who_leaves_is_evicted_and_others_go_on() -> None:
    handler = Stepping()

    async def scenario(model: Model) -> Any:
        leaving = asyncio.ensure_future(model.predict("mute:0"))
        async with left_at_the_end(model.stream("count:1000000")) as stream:
            while len(handler.running) < 2:  # else it may leave before it was let in
                await anext(stream)
            leaving.cancel()
            answer = await model.predict("count:3")
            while not handler.evicted:
                await anext(stream)
        return answer

    assert play(scenario, handler) == [0, 1, 2]
    assert handler.evicted[0] == "mute"
    assert not handler.running


@pytest.mark.parametrize("order", ["admit:0", "crash:0", "error:2", "odd:3"])
def test_what_one_request_does_harms_no_other(order: str) -> None:
    handler = Stepping()

    async def scenario(model: Model) -> list[Any]:
        return await all_of(model, "count:5", order, "count:6")

    first, failed, last = play(scenario, handler)
    assert (first, last) == (list(range(5)), list(range(6)))
    assert isinstance(failed, InvalidInputError if order == "admit:0" else ModelError)
    assert "internal" not in str(failed)
    assert not handler.running


def test_a_step_that_raises_ends_those_who_were_in_it_and_no_later_ones() -> None:
    handler = Stepping()

    async def scenario(model: Model) -> list[Any]:
        return [*await all_of(model, "mute:0", "raise:2"), await model.predict("count:2")]

    first, second, later = play(scenario, handler)
    assert isinstance(first, ModelError)
    assert isinstance(second, ModelError)
    assert later == [0, 1]
    assert handler.evicted == ["mute", "raise"]


def test_chunks_that_came_before_an_error_are_read_before_it() -> None:
    async def scenario(model: Model) -> list[Any]:
        chunks: list[Any] = []
        with pytest.raises(ModelError):
            await into(chunks, model.stream("error:3"))
        return chunks

    assert play(scenario) == [0, 1, 2]


def test_the_youngest_gives_way_when_memory_runs_out_and_begins_anew() -> None:
    handler = Stepping()

    async def scenario(model: Model) -> list[Any]:
        return await all_of(model, "count:5", "memory:0")

    first, second = play(scenario, handler)
    assert first == list(range(5))
    assert second == []
    assert handler.evicted == ["memory"]


def test_one_that_has_told_something_and_must_give_way_is_told_of_the_memory() -> None:
    handler = Stepping()

    async def scenario(model: Model) -> list[Any]:
        return await all_of(model, "count:50", "memory:3")

    first, second = play(scenario, handler)
    assert first == list(range(50))
    assert isinstance(second, OutOfMemoryError)
    assert handler.evicted == ["memory"]


def test_a_budget_that_is_spent_evicts() -> None:
    handler = Stepping()

    async def scenario(model: Model) -> list[Any]:
        spent = await all_of(model, "mute:0")
        return [*spent, await model.predict("count:1")]

    error, answer = play(scenario, handler, limits=Limits(timeout_s=0.2))
    assert error.code == "deadline_exceeded"
    assert answer == [0]


def test_a_model_that_fails_again_and_again_is_judged_by_its_examples_when_it_is_empty() -> None:
    handler = Stepping()

    async def scenario(model: Model) -> list[Any]:
        for _ in range(8):
            await all_of(model, "raise:0")
        return [await model.predict("count:2"), model.state]

    answer, state = play(scenario, handler)
    assert answer == [0, 1]
    assert state == "ready"


def test_several_replicas_share_the_requests() -> None:
    class Telling(Stepping):
        def postprocess(self, output: list[int]) -> list[int]:
            return [self.context.replica]

    async def scenario(model: Model) -> list[Any]:
        return await all_of(model, *["count:50"] * 8)

    answers = play(scenario, Telling, replicas=Replicas(count=2))
    assert {answer[0] for answer in answers} == {0, 1}


class Bad(SteppedHandler[int, list[int], int]):
    """Gives what is no advance."""

    news: Any = None

    def admit(self, item: int) -> int:
        return item

    def step(self) -> Any:
        return self.news

    def evict(self, sequence: int) -> None:
        """Nothing is kept."""


@pytest.mark.parametrize("news", [None, {}, "", 3, [Advance("who", [1])], ["text"]])
def test_what_is_no_list_of_advances_is_the_models_fault(news: Any) -> None:
    handler = Bad()
    handler.news = news

    async def scenario(model: Model) -> list[Any]:
        return await all_of(model, 1)

    (error,) = play(scenario, handler)
    assert isinstance(error, ModelError)


def test_two_sequences_are_told_apart() -> None:
    handler = Bad()
    handler.news = []

    async def scenario(model: Model) -> Any:
        waiting = asyncio.ensure_future(model.predict(1))
        second = await asyncio.gather(model.predict(1), return_exceptions=True)
        waiting.cancel()
        return second[0]

    assert isinstance(play(scenario, handler), ModelError)


def test_a_stepped_handler_lacks_nothing_and_has_nothing_that_is_never_called() -> None:
    class Lacking(SteppedHandler[int, int]):
        def admit(self, item: int) -> int:
            return item

    class Superfluous(Stepping):
        def infer(self, inputs: list[int]) -> list[int]:
            return inputs

    class Asynchronous(Stepping):
        async def step(self) -> Any:  # type: ignore[override]
            return []

    for cls, words in ((Lacking, "no `step`"), (Superfluous, "`infer`"), (Asynchronous, "async")):
        with pytest.raises(ConfigurationError, match=words):
            ModelServer().add("m", cls)
