"""All models of a server, their start and their end."""

import asyncio
import gc
import threading
from typing import Any

import pytest

from mlserve import (
    ConfigurationError,
    ModelHandler,
    ModelNotFoundError,
    ModelServer,
    ServerSettings,
)
from mlserve.registry import Registry
from mlserve.testing import EchoHandler


def registry_of(server: ModelServer) -> Registry:
    return server.registry


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 10))


def test_versions_are_sorted_as_numbers() -> None:
    server = ModelServer()
    for version in ("v2", "v10", "v1"):
        server.add("m", EchoHandler, version=version)

    assert [model.version for model in registry_of(server)] == ["v1", "v2", "v10"]
    assert registry_of(server).newest()["m"].version == "v10"


def test_it_counts_models_in_all_versions() -> None:
    server = ModelServer().add("a", EchoHandler).add("a", EchoHandler, version="v2")

    assert len(registry_of(server)) == 2
    assert len(Registry(ServerSettings())) == 0


def test_what_is_not_there_is_told_with_its_version() -> None:
    registry = registry_of(ModelServer().add("a", EchoHandler))

    with pytest.raises(ModelNotFoundError) as caught:
        registry.get("a", "v7")
    assert (caught.value.name, caught.value.version) == ("a", "v7")


def test_models_load_side_by_side() -> None:
    barrier = threading.Barrier(2)

    class Meeting(EchoHandler):
        def load(self) -> None:
            barrier.wait(5)

    registry = registry_of(ModelServer().add("a", Meeting).add("b", Meeting))

    async def scenario() -> list[str]:
        async with registry.running(wait_s=5):
            return [model.state for model in registry]

    assert run(scenario()) == ["ready", "ready"]


def test_it_waits_no_longer_than_told_and_cancels_what_still_loads_at_the_end() -> None:
    released = threading.Event()
    events: list[str] = []

    class Slow(EchoHandler):
        def load(self) -> None:
            assert released.wait(10)
            events.append("loaded")

        def unload(self) -> None:
            events.append("unload")

    registry = registry_of(ModelServer().add("slow", Slow))

    async def scenario() -> tuple[str, bool]:
        async with registry.running(wait_s=0):
            state, is_loaded = next(iter(registry)).state, registry.loaded.is_set()
            asyncio.get_running_loop().call_later(0.05, released.set)
        return state, is_loaded

    assert run(scenario()) == ("loading", False)
    assert events == ["loaded", "unload"]


def test_one_models_failure_unloads_the_others_before_it_is_raised() -> None:
    events: list[str] = []

    class Fine(EchoHandler):
        def unload(self) -> None:
            events.append("unload fine")

    class Broken(EchoHandler):
        def load(self) -> None:
            raise OSError("no weights")

    registry = registry_of(ModelServer().add("fine", Fine).add("broken", Broken))

    async def scenario() -> None:
        async with registry.running(wait_s=5):
            events.append("never")

    with pytest.raises(OSError, match="no weights"):
        run(scenario())
    assert events == ["unload fine"]
    assert not registry.is_running


@pytest.mark.parametrize("freeze_gc", [True, False])
def test_the_collector_is_relieved_while_it_runs_if_wanted_and_put_back(freeze_gc: bool) -> None:
    before = gc.get_threshold()
    settings = ServerSettings(freeze_gc=freeze_gc)
    registry = registry_of(ModelServer(settings=settings).add("echo", EchoHandler))

    async def scenario() -> int:
        async with registry.running():
            return gc.get_threshold()[0]

    during = run(scenario())

    assert (during >= 20_000) == freeze_gc
    assert gc.get_threshold() == before


@pytest.mark.parametrize("freeze_gc", [True])
def test_what_a_late_model_allocated_is_frozen_once_it_is_loaded(
    freeze_gc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    released = threading.Event()

    class Slow(EchoHandler):
        def load(self) -> None:
            assert released.wait(10)
            events.append("loaded")

    monkeypatch.setattr(gc, "freeze", lambda: events.append("freeze"))
    monkeypatch.setattr(gc, "unfreeze", lambda: events.append("unfreeze"))
    settings = ServerSettings(freeze_gc=freeze_gc)
    registry = registry_of(ModelServer(settings=settings).add("slow", Slow))

    async def scenario() -> int:
        async with registry.running(wait_s=0):
            threshold = gc.get_threshold()[0]
            released.set()
            assert await asyncio.to_thread(registry.loaded.wait, 5)
        return threshold

    assert run(scenario()) >= 20_000
    assert events == ["loaded", "freeze", "unfreeze"]


@pytest.mark.parametrize("freeze_gc", [True])
def test_models_that_load_in_time_are_frozen_before_they_serve(
    freeze_gc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: events.append("freeze"))
    settings = ServerSettings(freeze_gc=freeze_gc)
    registry = registry_of(ModelServer(settings=settings).add("echo", EchoHandler))

    async def scenario() -> None:
        async with registry.running():
            assert registry.loaded.is_set()
            events.append("serve")

    run(scenario())

    assert events == ["freeze", "serve"]


def test_who_runs_the_models_a_second_time_is_refused_and_the_first_goes_on() -> None:
    registry = registry_of(ModelServer().add("echo", EchoHandler))

    async def scenario() -> str:
        async with registry.running():
            with pytest.raises(ConfigurationError, match="running already"):
                async with registry.running():
                    pass
            return next(iter(registry)).state

    assert run(scenario()) == "ready"
    assert run(scenario()) == "ready"


def test_a_drain_without_bound_ends_when_nothing_is_left_to_do() -> None:
    settings = ServerSettings(drain_s=float("inf"), load_timeout_s=float("inf"))
    registry = registry_of(ModelServer(settings=settings).add("echo", EchoHandler))

    async def scenario() -> str:
        async with registry.running():
            await registry.drain()
        return next(iter(registry)).state

    assert run(scenario()) == "stopped"


def test_an_unload_that_raises_does_not_keep_the_others_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[str] = []

    class Broken(EchoHandler):
        def unload(self) -> None:
            raise RuntimeError("cannot let go")

    class Fine(EchoHandler):
        def unload(self) -> None:
            events.append("unload fine")

    registry = registry_of(ModelServer().add("broken", Broken).add("fine", Fine))

    async def scenario() -> None:
        async with registry.running():
            pass

    run(scenario())

    assert events == ["unload fine"]
    assert "cannot let go" in caplog.text


def test_a_hook_that_never_returns_does_not_hold_the_end_up() -> None:
    begun, released = threading.Event(), threading.Event()

    class Hanging(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            begun.set()
            assert released.wait(15)
            return inputs

    settings = ServerSettings(drain_s=0.05)
    registry = registry_of(ModelServer(settings=settings).add("m", Hanging))

    async def scenario() -> BaseException | None:
        async with registry.running():
            model = registry.get("m")
            request = asyncio.ensure_future(model.predict("a"))
            await asyncio.to_thread(begun.wait, 5)
        return (await asyncio.gather(request, return_exceptions=True))[0]

    error = run(scenario())
    released.set()

    assert getattr(error, "code", None) == "draining"


def test_a_drain_answers_what_is_left_after_its_time() -> None:
    begun, released = threading.Event(), threading.Event()

    class Slow(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            begun.set()
            assert released.wait(15)
            return inputs

    settings = ServerSettings(drain_s=0.05)
    registry = registry_of(ModelServer(settings=settings).add("m", Slow))

    async def scenario() -> tuple[Any, bool]:
        async with registry.running():
            request = asyncio.ensure_future(registry.get("m").predict("a"))
            await asyncio.to_thread(begun.wait, 5)
            await registry.drain()
            outcome = (await asyncio.gather(request, return_exceptions=True))[0]
            released.set()
            return outcome, registry.is_draining

    outcome, is_draining = run(scenario())

    assert getattr(outcome, "code", None) == "draining"
    assert is_draining


def test_a_drain_while_a_model_loads_gives_the_load_up_and_no_alarm() -> None:
    told: list[str] = []
    released = threading.Event()

    class Slow(EchoHandler):
        def load(self) -> None:
            assert released.wait(10)

    registry = registry_of(ModelServer().add("m", Slow))
    registry.on_late_failure = told.append

    async def scenario() -> None:
        async with registry.running(wait_s=0):
            await asyncio.sleep(0)
            await registry.drain()
            released.set()

    run(scenario())

    assert told == []


@pytest.mark.parametrize("error", [None, OSError("no weights")])
def test_a_load_that_ends_once_the_server_shuts_down_is_unloaded_and_no_alarm(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    events: list[str] = []
    released = threading.Event()

    class Slow(EchoHandler):
        def load(self) -> None:
            assert released.wait(10)
            events.append("loaded")
            if error is not None:
                raise error

        def unload(self) -> None:
            events.append("unloaded")

    registry = registry_of(ModelServer().add("m", Slow))
    registry.on_late_failure = told.append

    async def scenario() -> str:
        async with registry.running(wait_s=0):
            registry.begin_drain()
            released.set()
            assert await asyncio.to_thread(registry.loaded.wait, 5)
        return registry.get("m").state

    assert run(scenario()) == "stopped"
    assert told == []
    assert events == ["loaded", "unloaded"]
    assert "cannot become" not in caplog.text
