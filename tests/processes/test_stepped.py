"""A stepped handler in processes: what ends one of them costs no other request."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.execution.stepping import Stepping, left_at_the_end
from tests.processes.serving import Served, served

from mlserve import DeadlineExceededError, Limits, ModelError, ReplicaDiedError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept() -> Iterator[Served]:
    with served(Stepping, limits=Limits(hard_timeout_s=0.5)) as model:
        yield model


@pytest.fixture
def model(kept: Served) -> Served:
    async def answered() -> Any:
        return await kept.model.predict("count:1")

    assert kept.run(answered()) == [0]
    return kept


async def all_of(model: Served, *orders: str) -> list[Any]:
    answers = (model.model.predict(order) for order in orders)
    return await asyncio.gather(*answers, return_exceptions=True)


async def into_nothing(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


def test_requests_and_streams_are_answered(model: Served) -> None:
    async def scenario() -> list[Any]:
        chunks = [chunk async for chunk in model.model.stream("count:100")]
        return [chunks, *await all_of(model, *["count:20"] * 10)]

    assert model.run(scenario()) == [list(range(100)), *[list(range(20))] * 10]


def test_an_error_is_that_of_one_request(model: Served) -> None:
    first, failed, last = model.run(all_of(model, "count:5", "error:2", "count:6"))

    assert (first, last) == (list(range(5)), list(range(6)))
    assert isinstance(failed, ModelError)


def test_who_leaves_frees_its_slot(model: Served) -> None:
    async def scenario() -> Any:
        for _ in range(2 * Stepping.slots):
            async with left_at_the_end(model.model.stream("count:100000000")) as stream:
                await anext(stream)
        return await model.model.predict("count:3")

    assert model.run(scenario()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("order", "error"), [("kill:2", ModelError), ("hang:2", DeadlineExceededError)]
)
def test_what_ends_its_process_costs_no_other_request(
    model: Served, order: str, error: type[Exception]
) -> None:
    answers = model.run(all_of(model, "count:300", order, "count:301", "count:302"))

    guilty = answers.pop(1)
    assert answers == [list(range(300 + number)) for number in range(3)]
    assert isinstance(guilty, error)


def test_a_stream_that_has_told_something_is_not_begun_again(model: Served) -> None:
    async def scenario() -> list[Any]:
        async with left_at_the_end(model.model.stream("count:100000000")) as stream:
            await anext(stream)
            killing = asyncio.ensure_future(all_of(model, "kill:0"))
            with pytest.raises(ReplicaDiedError):
                await into_nothing(stream)
            return await killing

    (error,) = model.run(scenario())
    assert isinstance(error, ModelError)
