"""Reloading a model while it serves, and unloading it when it is still at work."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mlserve import (
    Batching,
    DrainingError,
    Limits,
    ModelError,
    ModelHandler,
    ModelNotReadyError,
    ModelServer,
    QueueFullError,
    ServerSettings,
)


class Named(ModelHandler[str, str]):
    """Says which handler preprocessed and which one ran a request; `infer` waits at a gate."""

    batching = Batching(max_size=1)

    def __init__(self, name: str, gate: threading.Event, begun: threading.Event) -> None:
        self.name, self.gate, self.begun = name, gate, begun

    def preprocess(self, request: str) -> str:
        return f"{request}:{self.name}"

    def infer(self, inputs: list[str]) -> list[str]:
        self.begun.set()
        assert self.gate.wait(10)
        return [f"{value}->{self.name}" for value in inputs]


def _nothing() -> None:
    """Gives the event loop time to do what is due."""


async def _until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


def test_what_the_old_handler_preprocessed_is_run_by_the_old_handler() -> None:
    gate, begun = threading.Event(), threading.Event()
    server = ModelServer().add("m", lambda: Named("old", gate, begun))

    async def scenario() -> list[str]:
        async with server.started():
            model = server.model_for("m")
            requests = [asyncio.ensure_future(model.predict(str(number))) for number in range(4)]
            await _until(begun)
            reload = asyncio.ensure_future(model.reload(lambda: Named("new", gate, begun)))
            while model.statistics().queued > 0:  # until the new handler's queue is in use
                await asyncio.to_thread(_nothing)
            late = asyncio.ensure_future(model.predict("late"))
            gate.set()
            answers = [await request for request in requests]
            await reload
            return [*answers, await late]

    *early, late = asyncio.run(scenario())

    assert early == [f"{number}:old->old" for number in range(4)]
    assert late == "late:new->new"


def test_a_model_that_does_not_serve_is_not_reloaded() -> None:
    gate, begun = threading.Event(), threading.Event()
    gate.set()
    server = ModelServer().add("m", lambda: Named("m", gate, begun))
    model = server.model_for("m")

    async def scenario() -> None:
        with pytest.raises(ModelNotReadyError):
            await model.reload()
        async with server.started():
            pass
        with pytest.raises(DrainingError):
            await model.reload()

    asyncio.run(scenario())


def test_a_model_that_could_not_be_loaded_is_brought_into_service_by_a_reload() -> None:
    events: list[str] = []

    class Mended(ModelHandler[str, str]):
        def load(self) -> None:
            events.append("load")
            if events.count("load") == 1:
                raise OSError("no weights")

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

        def unload(self) -> None:
            events.append("unload")

    server = ModelServer(settings=ServerSettings(on_load_failure="serve")).add("m", Mended)

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            assert model.state == "failed"
            await model.reload()
            assert model.state == "ready"
            return str(await model.predict("a"))

    answer = asyncio.run(scenario())

    assert answer == "a"
    assert events == ["load", "unload", "load", "unload"]


def test_a_reload_that_a_shutdown_overtakes_is_unloaded() -> None:
    events: list[str] = []
    is_loading, may_load = threading.Event(), threading.Event()

    class Counted(ModelHandler[str, str]):
        def load(self) -> None:
            events.append("load")
            if events.count("load") == 2:
                is_loading.set()
                assert may_load.wait(10)

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

        def unload(self) -> None:
            events.append("unload")

    server = ModelServer().add("m", Counted)

    async def scenario() -> None:
        async with server.started():
            reload = asyncio.ensure_future(server.model_for("m").reload())
            await _until(is_loading)
            server.registry.begin_drain()
            may_load.set()
            with pytest.raises(DrainingError):
                await reload

    asyncio.run(scenario())

    assert events.count("load") == events.count("unload") == 2


def test_an_async_unload_waits_for_a_sync_load_that_took_too_long() -> None:
    events: list[str] = []
    may_load = threading.Event()

    class Slow(ModelHandler[str, str]):
        def load(self) -> None:
            assert may_load.wait(10)
            events.append("loaded")

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

        async def unload(self) -> None:
            events.append("unloaded")

    settings = ServerSettings(load_timeout_s=0.01)
    server = ModelServer(settings=settings).add("m", Slow)

    async def scenario() -> None:
        asyncio.get_running_loop().call_later(0.1, may_load.set)
        with pytest.raises(TimeoutError):
            async with server.started():
                pass

    asyncio.run(scenario())

    assert events == ["loaded", "unloaded"]


def test_an_async_stream_that_is_cancelled_from_within_ends_in_an_error() -> None:
    class Cancelled(ModelHandler[str, str]):
        async def stream(self, item: str) -> AsyncIterator[str]:
            yield item
            raise asyncio.CancelledError

    server = ModelServer().add("m", Cancelled)

    async def scenario() -> Any:
        async with server.started():
            chunks = server.model_for("m").stream("a")
            first = await anext(chunks)
            with pytest.raises(ModelError):
                await anext(chunks)
            return first

    assert asyncio.run(scenario()) == "a"


def test_a_caller_that_leaves_before_preprocess_frees_its_place_at_once() -> None:
    gate, begun = threading.Event(), threading.Event()

    class Stuck(ModelHandler[str, str]):
        def preprocess(self, request: str) -> str:
            begun.set()
            assert gate.wait(10)
            return request

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    server = ModelServer().add("m", Stuck, limits=Limits(max_queue_size=2))

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            first = asyncio.ensure_future(model.predict("first"))
            await _until(begun)
            second = asyncio.ensure_future(model.predict("second"))
            await asyncio.to_thread(_nothing)
            with pytest.raises(QueueFullError):
                await model.predict("third")
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            third = asyncio.ensure_future(model.predict("third"))
            await asyncio.to_thread(_nothing)
            gate.set()
            await first
            return str(await third)

    assert asyncio.run(scenario()) == "third"


@pytest.mark.parametrize("options", [{"priority": "a"}, {"priority": 10}, {"timeout_s": 0}])
def test_priorities_and_timeouts_of_callers_are_checked(options: dict[str, Any]) -> None:
    gate, begun = threading.Event(), threading.Event()
    gate.set()
    server = ModelServer().add("m", lambda: Named("m", gate, begun))

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            with pytest.raises(ValueError, match=next(iter(options))):
                await model.predict("a", **options)
            return str(await model.predict("a"))

    assert asyncio.run(scenario()) == "a:m->m"


class Bare(ModelHandler[str, str]):
    """Has no hook before `infer`."""

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


class Preparing(Bare):
    def preprocess(self, request: str) -> str:
        return f"prepared {request}"


@pytest.mark.parametrize(
    ("old", "new", "answer"), [(Bare, Preparing, "prepared a"), (Preparing, Bare, "a")]
)
def test_the_hooks_of_the_new_handler_are_called_whichever_the_old_one_had(
    old: type[Bare], new: type[Bare], answer: str
) -> None:
    server = ModelServer().add("m", old)

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            await model.reload(new)
            return str(await model.predict("a"))

    assert asyncio.run(scenario()) == answer
