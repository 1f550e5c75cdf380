"""Answers that are kept, and equal requests that are computed once."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel, Field, SecretStr, field_serializer

from mlserve import (
    Batching,
    Binary,
    Cache,
    Call,
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    Limits,
    Model,
    ModelHandler,
    ModelOutputError,
    ModelServer,
    Upload,
)
from mlserve.cache import AnswerStore
from mlserve.job import Job

ResultT = TypeVar("ResultT")
WAIT_S = 10.0


class Ask(BaseModel):
    text: str
    number: float | None = None


class Said(BaseModel):
    words: list[str]
    n_calls: int


class Counting(ModelHandler[Ask, Said]):
    """Says how often it was called; a text such as `hold` waits for the test."""

    batching = Batching(max_size=4)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.entered = threading.Event()
        self.may_go_on = threading.Event()
        self.seen: list[Call] = []

    def preprocess(self, request: Ask) -> Ask:
        if request.text == "refuse":
            self.calls.append(request.text)
            raise InvalidInputError("It is refused.")
        return request

    def infer(self, inputs: list[Ask], calls: list[Call]) -> list[Said]:
        self.calls += [ask.text for ask in inputs]
        self.seen += calls
        if any(ask.text.startswith("hold") for ask in inputs):
            self.entered.set()
            self.may_go_on.wait(WAIT_S)
        if any(ask.text == "break" for ask in inputs):
            raise RuntimeError("It is broken.")
        return [Said(words=[ask.text], n_calls=len(self.calls)) for ask in inputs]


def play(
    scenario: Callable[[Model], Awaitable[ResultT]],
    handler: Any,
    cache: Cache | None = None,
    **options: Any,
) -> ResultT:
    """Run a scenario with a model that keeps its answers."""

    async def run() -> ResultT:
        server = ModelServer().add("m", handler, cache=cache or Cache(), **options)
        async with asyncio.timeout(20.0), server.started():
            return await scenario(server.model_for("m"))

    return asyncio.run(run())


async def entered(handler: Counting) -> None:
    assert await asyncio.to_thread(handler.entered.wait, WAIT_S)


def n_waiting(model: Model) -> int:
    answers = model.engine.answers
    assert answers is not None
    return sum(len(flight.waiting) for flight in answers._flights.values())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - only looking at it can tell
        await asyncio.sleep(0)


async def until_waiting(model: Model, n: int) -> None:
    await until(lambda: n_waiting(model) == n)


def test_an_equal_request_is_answered_without_the_model() -> None:
    handler = Counting()

    async def scenario(model: Model) -> tuple[Any, Any]:
        return await model.predict({"text": "a"}), await model.predict(Ask(text="a"))

    first, second = play(scenario, handler)

    assert first == second
    assert handler.calls == ["a"]


def test_what_one_caller_does_with_its_answer_the_next_one_does_not_see() -> None:
    handler = Counting()

    async def scenario(model: Model) -> list[list[str]]:
        answers = []
        for _ in range(3):
            said = await model.predict({"text": "a"})
            answers.append(list(said.words))
            said.words.append("changed")
        return answers

    assert play(scenario, handler) == [["a"]] * 3


def test_equal_requests_in_flight_are_computed_once_and_each_has_an_answer_of_its_own() -> None:
    handler = Counting()

    async def scenario(model: Model) -> list[Said]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(model.predict({"text": "hold"})) for _ in range(20)]
            await entered(handler)
            assert n_waiting(model) == 20
            handler.may_go_on.set()
        return [task.result() for task in tasks]

    answers = play(scenario, handler)

    assert [said.words for said in answers] == [["hold"]] * 20
    assert len({id(said) for said in answers}) == 20
    assert handler.calls == ["hold"]


def test_the_computation_goes_on_when_its_first_caller_leaves() -> None:
    handler = Counting()

    async def scenario(model: Model) -> Any:
        first = asyncio.ensure_future(model.predict({"text": "hold"}))
        await entered(handler)
        second = asyncio.ensure_future(model.predict({"text": "hold"}))
        await until_waiting(model, 2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert not handler.seen[0].cancelled
        handler.may_go_on.set()
        return await second

    assert play(scenario, handler).words == ["hold"]
    assert handler.calls == ["hold"]


def test_a_caller_that_leaves_takes_nothing_from_the_others() -> None:
    handler = Counting()

    async def scenario(model: Model) -> Any:
        first = asyncio.ensure_future(model.predict({"text": "hold"}))
        await entered(handler)
        second = asyncio.ensure_future(model.predict({"text": "hold"}))
        await until_waiting(model, 2)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        handler.may_go_on.set()
        return await first

    assert play(scenario, handler).words == ["hold"]


def test_once_nobody_waits_the_model_is_told_and_the_next_request_begins_anew() -> None:
    handler = Counting()

    async def scenario(model: Model) -> Any:
        tasks = [asyncio.ensure_future(model.predict({"text": "hold"})) for _ in range(2)]
        await entered(handler)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert handler.seen[0].cancelled
        handler.may_go_on.set()
        return await model.predict({"text": "hold"})

    assert play(scenario, handler).n_calls == 2


def test_each_caller_has_its_own_deadline() -> None:
    handler = Counting()

    async def scenario(model: Model) -> Any:
        short = asyncio.ensure_future(model.predict({"text": "hold"}, timeout_s=0.05))
        await entered(handler)
        patient = asyncio.ensure_future(model.predict({"text": "hold"}))
        await until_waiting(model, 2)
        with pytest.raises(DeadlineExceededError, match=r"0.05 s \(stage: infer\)"):
            await short
        handler.may_go_on.set()
        return await patient

    assert play(scenario, handler).words == ["hold"]
    assert handler.calls == ["hold"]


def test_a_request_of_all_who_wait_is_refused_together_and_not_kept() -> None:
    handler = Counting()

    async def scenario(model: Model) -> list[Any]:
        asked = (model.predict({"text": "refuse"}) for _ in range(3))
        together = await asyncio.gather(*asked, return_exceptions=True)
        return [
            *together,
            *await asyncio.gather(model.predict({"text": "refuse"}), return_exceptions=True),
        ]

    errors = play(scenario, handler)

    assert all(isinstance(error, InvalidInputError) for error in errors)
    assert handler.calls == ["refuse", "refuse"]


def test_what_comes_later_than_the_first_has_time_left_and_is_tried_again() -> None:
    """The flight is out of time before those who joined it."""
    handler = Counting()

    async def scenario(model: Model) -> Any:
        first = asyncio.ensure_future(model.predict({"text": "hold"}))
        await entered(handler)
        second = asyncio.ensure_future(model.predict({"text": "hold"}))
        await until_waiting(model, 2)
        (flight,) = model.engine.answers._flights.values()  # type: ignore[union-attr]
        flight.job.fail(DeadlineExceededError("infer", 1.0))
        with pytest.raises(DeadlineExceededError):
            await first
        handler.may_go_on.set()
        return await second

    assert play(scenario, handler).words == ["hold"]
    assert handler.calls == ["hold", "hold"]


def test_a_reload_forgets_what_was_answered_and_what_is_being_answered() -> None:
    made: list[Counting] = []

    def make() -> Counting:
        made.append(Counting())
        return made[-1]

    async def scenario(model: Model) -> None:
        old = made[-1]
        await model.predict({"text": "a"})
        held = asyncio.ensure_future(model.predict({"text": "hold"}))
        await entered(old)
        reloading = asyncio.ensure_future(model.reload())
        await until(lambda: store_of(model).n_bytes == 0)
        made[-1].may_go_on.set()
        await model.predict({"text": "a"})
        old.may_go_on.set()
        await asyncio.gather(held, reloading)
        await model.predict({"text": "hold"})
        assert old.calls == made[-1].calls == ["a", "hold"]

    play(scenario, make)


def test_an_answer_that_is_too_old_is_not_given() -> None:
    handler = Counting()

    async def scenario(model: Model) -> list[int]:
        numbers = []
        for older_s in (9.0, 0.5, 1.0, 0.0):
            numbers.append((await model.predict({"text": "a"})).n_calls)
            kept = store_of(model)._kept
            for key, answer in kept.items():
                kept[key] = replace(answer, at=answer.at - older_s)
        return numbers

    assert play(scenario, handler, Cache(ttl_s=10)) == [1, 1, 1, 2]


def store_of(model: Model) -> AnswerStore:
    assert model.engine.answers is not None
    return model.engine.answers._store


def test_requests_that_differ_only_in_what_json_has_one_word_for_are_told_apart() -> None:
    handler = Counting()

    async def scenario(model: Model) -> None:
        for number in (None, float("nan"), float("inf"), 1.0, None):
            await model.predict(Ask(text="a", number=number))

    play(scenario, handler)

    assert len(handler.calls) == 4


def test_a_request_of_a_subclass_is_always_computed() -> None:
    class More(Ask):
        more: int

    handler = Counting()

    async def scenario(model: Model) -> None:
        await model.predict(More(text="a", more=1))
        await model.predict(More(text="a", more=2))

    play(scenario, handler)

    assert handler.calls == ["a", "a"]


def test_a_binary_answer_is_kept_as_it_is() -> None:
    class Picture(ModelHandler[str, Binary]):
        n_calls = 0

        def infer(self, inputs: list[str]) -> list[Binary]:
            type(self).n_calls += 1
            return [Binary(text.encode(), media_type="image/gif") for text in inputs]

    async def scenario(model: Model) -> list[Binary]:
        return [await model.predict("a"), await model.predict("a")]

    assert play(scenario, Picture) == [Binary(b"a", media_type="image/gif")] * 2
    assert Picture.n_calls == 1


def test_a_type_that_does_not_take_what_it_writes_is_computed_for_python_callers() -> None:
    class Odd(BaseModel):
        value: int = Field(alias="read", serialization_alias="written")

    class Writes(ModelHandler[int, Odd]):
        n_calls = 0

        def infer(self, inputs: list[int]) -> list[Odd]:
            type(self).n_calls += 1
            return [Odd(read=value) for value in inputs]

    async def scenario(model: Model) -> list[Odd]:
        return [await model.predict(1), await model.predict(1)]

    assert [odd.value for odd in play(scenario, Writes)] == [1, 1]
    assert Writes.n_calls == 2


def test_a_model_that_is_drained_gives_no_kept_answer() -> None:
    handler = Counting()

    async def scenario(model: Model) -> None:
        await model.predict({"text": "a"})
        model.engine.refuse_new_work()
        with pytest.raises(Exception, match="shutting down"):
            await model.predict({"text": "a"})

    play(scenario, handler)


def test_what_the_first_request_took_is_not_told_of_those_that_waited_with_it() -> None:
    handler = Counting()

    async def scenario(model: Model) -> list[Job]:
        jobs = [model._job({"text": "hold"}, "predict", None, 0) for _ in range(2)]
        tasks = [asyncio.ensure_future(model.engine.predict(job)) for job in jobs]
        await entered(handler)
        handler.may_go_on.set()
        await asyncio.gather(*tasks)
        return jobs

    first, second = play(scenario, handler)

    assert (first.times.batch_size, second.times.batch_size) == (1, 0)
    assert first.call.annotations == {"cache": "miss"}
    assert second.call.annotations == {"cache": "coalesced"}


@pytest.mark.parametrize(
    "options",
    [{"max_bytes": 0}, {"max_entries": True}, {"ttl_s": 0}, {"ttl_s": -1.0}],
    ids=str,
)
def test_bounds_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Cache(**options)


class OnlyStreams(ModelHandler[str, str]):
    def stream(self, item: str) -> Any:
        yield item


class Effects(Counting):
    idempotent = False


class Secret(BaseModel):
    word: SecretStr


class Hidden(BaseModel):
    word: str = Field(exclude=True)


class Rounded(BaseModel):
    value: float

    @field_serializer("value")
    def short(self, value: float) -> float:
        return round(value)


class File(BaseModel):
    file: Upload


def handler_of(request: Any) -> type[ModelHandler[Any, str]]:
    class Takes(ModelHandler[request, str]):
        def infer(self, inputs: list[Any]) -> list[str]:
            return ["" for _ in inputs]

    return Takes


@pytest.mark.parametrize(
    ("handler", "cache", "message"),
    [
        (OnlyStreams, Cache(), "only streams"),
        (Effects, Cache(), "not idempotent"),
        (Counting, True, r"must be `Cache\(…\)`"),
        (handler_of(Secret), Cache(), "could be taken for equal"),
        (handler_of(list[Hidden]), Cache(), "could be taken for equal"),
        (handler_of(dict[str, Rounded]), Cache(), "could be taken for equal"),
        (handler_of(File), Cache(), "could be taken for equal"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_words(handler: Any, cache: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ModelServer().add("m", handler, cache=cache)


def test_a_full_queue_refuses_what_is_not_kept_and_answers_what_is() -> None:
    handler = Counting()

    async def scenario(model: Model) -> None:
        await model.predict({"text": "a"})
        held = asyncio.ensure_future(model.predict({"text": "hold"}))
        await entered(handler)
        waiting = asyncio.ensure_future(model.predict({"text": "b"}))
        await until(lambda: model.statistics().queued == 1)
        with pytest.raises(Exception, match="is full"):
            await model.predict({"text": "c"})
        assert (await model.predict({"text": "a"})).words == ["a"]
        handler.may_go_on.set()
        await asyncio.gather(held, waiting)

    play(scenario, handler, limits=Limits(max_queue_size=1))


def test_no_more_wait_for_one_computation_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlserve.answers._MAX_WAITING", 2)
    handler = Counting()

    async def scenario(model: Model) -> list[Any]:
        asked = [asyncio.ensure_future(model.predict({"text": "hold"})) for _ in range(3)]
        await entered(handler)
        handler.may_go_on.set()
        return await asyncio.gather(*asked)

    answers = play(scenario, handler)

    assert [said.words for said in answers] == [["hold"]] * 3
    assert handler.calls == ["hold", "hold"]


def test_who_leaves_before_the_model_has_begun_costs_it_nothing() -> None:
    handler = Counting()

    async def scenario(model: Model) -> None:
        leaving = asyncio.ensure_future(model.predict({"text": "a"}))
        await until(lambda: n_waiting(model) == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert n_waiting(model) == 0
        assert (await model.predict({"text": "b"})).words == ["b"]
        assert model.statistics().in_flight == 0

    play(scenario, handler)

    assert handler.calls == ["b"]


def test_an_answer_that_cannot_be_written_fails_for_all_who_wait() -> None:
    class Endless(ModelHandler[str, float]):
        def infer(self, inputs: list[str]) -> list[float]:
            return [float("nan") for _ in inputs]

    async def scenario(model: Model) -> list[Any]:
        return await asyncio.gather(*(model.predict("a") for _ in range(3)), return_exceptions=True)

    errors = play(scenario, Endless)

    assert all(isinstance(error, ModelOutputError) for error in errors)


def test_a_request_that_cannot_be_written_is_always_computed() -> None:
    class Kinds(ModelHandler[Any, str]):
        n_calls = 0

        def infer(self, inputs: list[Any]) -> list[str]:
            type(self).n_calls += 1
            return [type(value).__name__ for value in inputs]

    async def scenario(model: Model) -> list[Any]:
        thing = object()
        return [await model.predict(thing), await model.predict(thing)]

    assert play(scenario, Kinds) == ["object", "object"]
    assert Kinds.n_calls == 2


def test_what_is_being_answered_shows_in_its_repr() -> None:
    async def scenario(model: Model) -> str:
        await model.predict({"text": "a"})
        return repr(model.engine.answers)

    shown = play(scenario, Counting())

    assert shown.startswith("<Answers <AnswerStore of 1 answers, ")
    assert shown.endswith(" bytes>, 0 being made>")
