"""What becomes of the old replicas after a reload: waited for, unloaded once, never for ever."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from tests.http.waiting import until

from mlserve import Batching, DeadlineExceededError, Limits, Model, ModelHandler, ModelServer
from mlserve.handler import Call
from mlserve.job import Job

UNLOAD_S = 0.05


class Held(ModelHandler[str, str]):
    """Stands in `infer` for `held` until it may go; counts its loads and unloads."""

    batching = Batching(max_size=1)
    may_go: ClassVar[threading.Event]
    events: ClassVar[list[str]]

    def load(self) -> None:
        self.events.append("load")

    def infer(self, inputs: list[str]) -> list[str]:
        if inputs == ["held"]:
            assert self.may_go.wait(15)
        return inputs

    def stream(self, item: str) -> Iterator[str]:
        while True:
            yield item

    def unload(self) -> None:
        self.events.append("unload")


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Held]]:
    """Give a handler class for one test; `unload` has little time."""
    monkeypatch.setattr("mlserve.engine.UNLOAD_S", UNLOAD_S)
    may_go = threading.Event()
    yield type("HeldHere", (Held,), {"may_go": may_go, "events": []})
    may_go.set()


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 15))


async def begin(model: Model) -> "asyncio.Task[Any]":
    """Begin a request that stays in `infer`."""
    task = asyncio.get_running_loop().create_task(model.predict("held"))
    await asyncio.to_thread(until, lambda: model.statistics().running == 1)
    return task


async def begin_reload(model: Model, handler: type[Held], n_loads: int) -> "asyncio.Task[None]":
    """Begin a reload, and wait until the new replica serves."""
    old = model.engine._lane
    task = asyncio.get_running_loop().create_task(model.reload())
    await asyncio.to_thread(until, lambda: model.engine._lane is not old)
    assert handler.events.count("load") == n_loads
    return task


def test_a_hook_that_hangs_in_the_old_replica_holds_no_reload_up_for_ever(
    handler: type[Held], caplog: pytest.LogCaptureFixture
) -> None:
    server = ModelServer().add("m", handler)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            with pytest.raises(DeadlineExceededError):
                await model.predict("held", timeout_s=0.05)
            await model.reload()
            await model.reload()
            assert await model.predict("a") == "a"
            assert handler.events == ["load", "load", "load", "unload"]
            handler.may_go.set()
            await asyncio.to_thread(until, lambda: handler.events.count("unload") == 2)

    run(scenario())

    assert [record.message for record in caplog.records].count("model.unload.abandoned") == 1
    assert handler.events.count("load") == handler.events.count("unload") == 3


def test_a_reload_waits_for_what_the_old_replica_has_in_flight_however_long_unload_may_take(
    handler: type[Held], caplog: pytest.LogCaptureFixture
) -> None:
    server = ModelServer().add("m", handler)

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            request = await begin(model)
            reload = await begin_reload(model, handler, 2)
            done, _ = await asyncio.wait({request, reload}, timeout=4 * UNLOAD_S)
            assert not done
            assert "unload" not in handler.events
            handler.may_go.set()
            await reload
            return str(await request)

    assert run(scenario()) == "held"
    assert handler.events == ["load", "load", "unload", "unload"]
    assert "model.unload.abandoned" not in caplog.text


def test_what_a_cancelled_reload_has_replaced_is_unloaded_all_the_same(
    handler: type[Held],
) -> None:
    server = ModelServer().add("m", handler)

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            request = await begin(model)
            reload = await begin_reload(model, handler, 2)
            reload.cancel()
            await asyncio.gather(reload, return_exceptions=True)
            assert reload.cancelled()
            handler.may_go.set()
            await asyncio.to_thread(until, lambda: handler.events.count("unload") == 1)
            return str(await request)

    assert run(scenario()) == "held"
    assert handler.events == ["load", "load", "unload", "unload"]


def test_a_shutdown_takes_over_what_a_reload_waits_for(handler: type[Held]) -> None:
    server = ModelServer().add("m", handler)

    async def scenario() -> str:
        async with server.started():
            model = server.model_for("m")
            request = await begin(model)
            reload = await begin_reload(model, handler, 2)
            server.registry.begin_drain()
            handler.may_go.set()
        await reload
        return str(await request)

    assert run(scenario()) == "held"
    assert handler.events == ["load", "load", "unload", "unload"]


def test_a_stream_that_nobody_reads_or_closes_holds_a_reload_up_no_longer_than_its_budget(
    handler: type[Held],
) -> None:
    limits = Limits(timeout_s=0.1, stream_timeout_s=0.1)
    server = ModelServer().add("m", handler, limits=limits)

    async def scenario() -> None:
        async with server.started():
            engine = server.model_for("m").engine
            call = Call("left", timeout_s=0.1, clock=engine.clock)
            stream = engine.stream(Job("a", call, timeout_s=0.1))
            await asyncio.to_thread(until, lambda: engine.statistics().running == 1)
            await engine.reload()
            assert handler.events == ["load", "load", "unload"]
            await stream.aclose()

    run(scenario())

    assert handler.events == ["load", "load", "unload", "unload"]
