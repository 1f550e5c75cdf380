"""One model's life: reload under load, health, cancelled callers, isolation."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from tests.http.waiting import until

from mlserve import (
    Batching,
    ConfigurationError,
    DeadlineExceededError,
    Limits,
    Model,
    ModelError,
    ModelFailedError,
    ModelHandler,
    ModelServer,
    QueueFullError,
    Replicas,
    Restart,
    ServerSettings,
)
from mlserve.testing import EchoHandler

ResultT = TypeVar("ResultT")


def run(scenario: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(asyncio.wait_for(scenario, 10))


async def until_set(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 5)


class Marked(ModelHandler[str, str]):
    """Answers with its mark; counts loads and unloads."""

    def __init__(self, mark: str, events: list[str], *, fails: bool = False) -> None:
        self.mark, self.events, self.fails = mark, events, fails

    def load(self) -> None:
        self.events.append(f"load {self.mark}")
        if self.fails:
            raise OSError("no weights")

    def infer(self, inputs: list[str]) -> list[str]:
        return [text + self.mark for text in inputs]

    def stream(self, item: str) -> Iterator[str]:
        for _ in range(3):
            yield item + self.mark

    def unload(self) -> None:
        self.events.append(f"unload {self.mark}")


def test_a_reload_swaps_the_model_and_unloads_the_old_one() -> None:
    events: list[str] = []
    server = ModelServer().add("m", lambda: Marked("1", events))

    async def scenario() -> tuple[str, str]:
        async with server.started():
            model = server.model_for("m")
            before = await model.predict("a")
            await model.reload(lambda: Marked("2", events))
            return before, await model.predict("a")

    assert run(scenario()) == ("a1", "a2")
    assert events == ["load 1", "load 2", "unload 1", "unload 2"]


def test_a_reload_without_a_handler_loads_the_same_one_anew() -> None:
    events: list[str] = []
    server = ModelServer().add("m", lambda: Marked("1", events))

    async def scenario() -> str:
        async with server.started():
            await server.model_for("m").reload()
            return str(await server.model_for("m").predict("a"))

    assert run(scenario()) == "a1"
    assert events == ["load 1", "load 1", "unload 1", "unload 1"]


def test_a_reload_whose_load_fails_keeps_the_old_model() -> None:
    events: list[str] = []
    server = ModelServer().add("m", lambda: Marked("1", events))

    async def scenario() -> tuple[str, str]:
        async with server.started():
            model = server.model_for("m")
            with pytest.raises(OSError, match="no weights"):
                await model.reload(lambda: Marked("2", events, fails=True))
            return model.state, await model.predict("a")

    assert run(scenario()) == ("ready", "a1")
    assert events == ["load 1", "load 2", "unload 2", "unload 1"]


def test_a_reload_of_a_handler_of_other_types_is_refused_and_keeps_the_old_model() -> None:
    events: list[str] = []
    server = ModelServer().add("m", lambda: Marked("1", events))

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            with pytest.raises(ConfigurationError):
                await model.reload(EchoHandler)
            return str(await model.predict("a"))

    assert run(scenario()) == "a1"


def test_an_instance_cannot_be_reloaded_beside_itself() -> None:
    server = ModelServer().add("m", Marked("1", []))

    async def scenario() -> str:
        async with server.started():
            with pytest.raises(ConfigurationError, match="beside itself"):
                await server.model_for("m").reload()
            await server.model_for("m").reload(lambda: Marked("2", []))
            return str(await server.model_for("m").predict("a"))

    assert run(scenario()) == "a2"


def test_no_request_is_lost_and_no_stream_is_cut_by_reloads() -> None:
    events: list[str] = []
    server = ModelServer().add("m", lambda: Marked("1", events), batching=Batching(max_size=2))

    async def ask(model: Model, n: int) -> list[str]:
        return [await model.predict(str(number)) for number in range(n)]

    async def read(model: Model) -> list[str]:
        return [chunk async for chunk in model.stream("s")]

    async def scenario() -> list[list[str]]:
        async with server.started():
            model = server.model_for("m")
            asking = asyncio.gather(*(ask(model, 20) for _ in range(4)))
            reading = asyncio.gather(*(read(model) for _ in range(20)))
            for number in range(2, 6):
                await model.reload(lambda n=number: Marked(str(n), events))  # type: ignore[misc]
            assert [len(set(chunks)) for chunks in await reading] == [1] * 20
            return await asking

    answers = run(scenario())

    assert all(text[:-1] == str(n) for mine in answers for n, text in enumerate(mine))
    assert sorted(events) == sorted(
        f"{verb} {n}" for verb in ("load", "unload") for n in range(1, 6)
    )


def test_a_replica_whose_health_fails_is_loaded_anew() -> None:
    events: list[str] = []
    sick, loaded_again = threading.Event(), threading.Event()

    class Ailing(EchoHandler):
        def load(self) -> None:
            events.append("load")
            if events.count("load") == 2:
                loaded_again.set()

        def health(self) -> None:
            if sick.is_set():
                sick.clear()
                raise RuntimeError("the device is gone")

        def unload(self) -> None:
            events.append("unload")

    server = ModelServer(settings=ServerSettings(health_period_s=0.01)).add("m", Ailing)

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            await model.predict({"text": "a"})
            sick.set()
            await until_set(loaded_again)
            await asyncio.to_thread(until, lambda: model.state == "ready")
            return str((await model.predict({"text": "b"})).text)

    assert run(scenario()) == "b"
    assert events == ["load", "unload", "load", "unload"]


def test_a_model_none_of_whose_replicas_can_be_restarted_is_out_of_order() -> None:
    events: list[str] = []
    given_up = threading.Event()

    class Dying(EchoHandler):
        def load(self) -> None:
            events.append("load")
            if len(events) > 1:
                given_up.set()
                raise OSError("no device")

        def health(self) -> None:
            raise RuntimeError("/srv/secret is gone")

    restart = Restart(failures=1, backoff_s=0.001, max_backoff_s=0.001)
    server = ModelServer(settings=ServerSettings(health_period_s=0.01))
    server.add("m", Dying, replicas=Replicas(restart=restart))

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            await until_set(given_up)
            with pytest.raises(ModelFailedError) as caught:
                await model.predict({"text": "a"})
            assert model.state == "failed"
            return str(caught.value)

    message = run(scenario())

    assert "secret" not in message
    assert "replica 0" in message


class Gated(ModelHandler[str, str]):
    """Runs one request at a time, and waits at a gate."""

    batching = Batching(max_size=1)

    def __init__(self, gate: threading.Event, begun: threading.Event, ran: list[str]) -> None:
        self.gate, self.begun, self.ran = gate, begun, ran

    def infer(self, inputs: list[str]) -> list[str]:
        self.ran.extend(inputs)
        self.begun.set()
        assert self.gate.wait(10)
        return inputs


def test_a_cancelled_caller_frees_its_place_and_is_never_run() -> None:
    gate, begun, ran = threading.Event(), threading.Event(), list[str]()
    limits = Limits(max_queue_size=1)
    server = ModelServer().add("m", Gated(gate, begun, ran), limits=limits)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            first = asyncio.ensure_future(model.predict("first"))
            await until_set(begun)
            second = asyncio.ensure_future(model.predict("second"))
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match="1 requests are waiting"):
                await model.predict("third")
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            assert second.cancelled()
            fourth = asyncio.ensure_future(model.predict("fourth"))
            await asyncio.sleep(0)
            gate.set()
            assert [await first, await fourth] == ["first", "fourth"]

    run(scenario())

    assert ran == ["first", "fourth"]


def test_a_deadline_that_passes_while_infer_runs_leaves_the_replica_busy_until_it_returns() -> None:
    gate, begun, ran = threading.Event(), threading.Event(), list[str]()
    server = ModelServer().add("m", Gated(gate, begun, ran))

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            with pytest.raises(DeadlineExceededError) as caught:
                await model.predict("slow", timeout_s=0.05)
            assert caught.value.stage == "infer"
            second = asyncio.ensure_future(model.predict("second"))
            await asyncio.sleep(0.01)
            assert ran == ["slow"]
            gate.set()
            return str(await second)

    assert run(scenario()) == "second"


def test_one_bad_request_of_a_batch_fails_alone() -> None:
    class Picky(ModelHandler[int, int]):
        def infer(self, inputs: list[int]) -> list[int]:
            if any(value % 5 == 0 for value in inputs):
                raise RuntimeError("a multiple of five")
            return inputs

    server = ModelServer().add("m", Picky)

    async def scenario() -> list[Any]:
        async with server.started():
            model = server.model_for("m")
            return await asyncio.gather(
                *(model.predict(number) for number in range(20)), return_exceptions=True
            )

    outcomes = run(scenario())

    assert all(
        isinstance(outcome, ModelError) if number % 5 == 0 else outcome == number
        for number, outcome in enumerate(outcomes)
    )


def test_a_handler_that_must_not_run_twice_fails_with_its_batch_and_runs_once() -> None:
    n_runs = 0

    class Once(ModelHandler[int, int]):
        idempotent = False

        def infer(self, inputs: list[int]) -> list[int]:
            nonlocal n_runs
            n_runs += 1
            raise RuntimeError

    server = ModelServer().add("m", Once)

    async def scenario() -> list[Any]:
        async with server.started():
            model = server.model_for("m")
            requests = (model.predict(number) for number in range(8))
            return await asyncio.gather(*requests, return_exceptions=True)

    outcomes = run(scenario())

    assert all(isinstance(outcome, ModelError) for outcome in outcomes)
    assert n_runs <= 2


def test_requests_are_not_refused_for_the_time_of_streams_that_wait_for_a_replica() -> None:
    may_end = threading.Event()

    class Both(ModelHandler[str, str]):
        batching = Batching(max_size=1)
        replicas = Replicas(max_streams=1)

        def infer(self, inputs: list[str]) -> list[str]:
            time.sleep(0.02)  # stands for the model
            return inputs

        def stream(self, item: str) -> Iterator[str]:
            assert may_end.wait(10)
            yield item

    server = ModelServer().add("m", Both)

    async def read(model: Model) -> list[str]:
        return [chunk async for chunk in model.stream("s")]

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            for _ in range(6):  # so that it is known what a batch costs
                await model.predict("a")
            streams = [asyncio.ensure_future(read(model)) for _ in range(101)]
            await asyncio.to_thread(until, lambda: model.statistics().queued == 100)
            assert await model.predict("b", timeout_s=1.0) == "b"
            may_end.set()
            assert await asyncio.gather(*streams) == [["s"]] * 101

    asyncio.run(asyncio.wait_for(scenario(), 15))
