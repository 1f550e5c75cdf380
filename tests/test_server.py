"""Putting a server together, and using its models without HTTP."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from mlserve import (
    Batching,
    ConfigurationError,
    Limits,
    ModelHandler,
    ModelNotFoundError,
    ModelServer,
    Replicas,
    ServerSettings,
)
from mlserve.testing import Echo, EchoHandler


class Adder(ModelHandler[int, int]):
    """Adds what it was made with."""

    batching = Batching(max_size=4)
    replicas = Replicas(count=2)

    def __init__(self, amount: int = 1) -> None:
        self.amount = amount

    def infer(self, inputs: list[int]) -> list[int]:
        return [value + self.amount for value in inputs]


class Apart(Adder):
    replicas = Replicas(placement="process")


class Needy(ModelHandler[int, int]):
    def __init__(self, path: str) -> None:
        self.path = path

    def infer(self, inputs: list[int]) -> list[int]:
        return inputs


def predict(server: ModelServer, name: str, value: Any) -> Any:
    async def scenario() -> Any:
        async with server.started():
            return await server.model_for(name).predict(value)

    return asyncio.run(asyncio.wait_for(scenario(), 10))


@pytest.mark.parametrize(
    "source",
    [Adder, lambda: Adder(1), functools.partial(Adder, 1), Adder(1)],
    ids=["class", "function", "partial", "instance"],
)
def test_a_handler_may_be_a_class_a_callable_or_an_instance(source: Any) -> None:
    assert predict(ModelServer().add("m", source), "m", 1) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "must be a `ModelHandler` class"),
        ("adder", "must be a `ModelHandler` class"),
        (Needy, r"functools.partial\(Needy, …\)"),
        (lambda: 7, "gave 'int', which is no `ModelHandler`"),
        (lambda: 1 / 0, "could not make a handler: division by zero"),
        (FastAPI, "is no `ModelHandler`"),
    ],
)
def test_what_gives_no_handler_is_refused_in_words_that_help(source: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ModelServer().add("m", source)


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", ".a", "a/b", "ä", "a" * 65, "a\n"])
def test_a_name_that_cannot_stand_in_a_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name must be"):
        ModelServer().add(name, Adder)


@pytest.mark.parametrize("version", ["1", "v0", "v01", "V1", "v1.0", "v", "v1\n", "latest"])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    with pytest.raises(ConfigurationError, match="`version` must be"):
        ModelServer().add("m", Adder, version=version)


@pytest.mark.parametrize("path", ["predict", "/", "/a/", "//a", "/{name}", "/a?b", "/a b", ""])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="`path` must look like"):
        ModelServer().add("m", Adder, path=path)


@pytest.mark.parametrize(
    "options", [{"batching": 8}, {"replicas": 2}, {"limits": 1.0}, {"batching": Replicas()}]
)
def test_options_of_the_wrong_kind_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be `"):
        ModelServer().add("m", Adder, **options)


def test_one_name_and_version_cannot_be_added_twice() -> None:
    server = ModelServer().add("m", Adder)

    with pytest.raises(ConfigurationError, match="has a version `v1` already"):
        server.add("m", Adder)


def test_the_handlers_own_options_hold_unless_others_are_given() -> None:
    server = ModelServer().add("own", Adder)
    server.add("given", Adder, batching=Batching(max_size=2), replicas=Replicas(count=1))

    own, given = (server.model_for(name).engine.spec for name in ("own", "given"))
    assert (own.batching.max_size, own.replicas.count) == (4, 2)
    assert (given.batching.max_size, given.replicas.count) == (2, 1)


def test_an_instance_is_one_replica_and_more_are_refused() -> None:
    server = ModelServer().add("m", Adder(1))

    assert server.model_for("m").engine.spec.replicas.count == 1
    with pytest.raises(ConfigurationError, match="can be one replica only"):
        ModelServer().add("m", Adder(1), replicas=Replicas(count=2))


def test_an_instance_cannot_run_in_a_process_of_its_own() -> None:
    class Apart(Adder):
        replicas = Replicas(placement="process")

    with pytest.raises(ConfigurationError, match=r"process of its own\. Pass its class"):
        ModelServer().add("m", Adder(1), replicas=Replicas(placement="process"))
    with pytest.raises(ConfigurationError, match=r"process of its own\. Pass its class"):
        ModelServer().add("m", Apart(1))


def test_a_hard_timeout_needs_replicas_in_processes() -> None:
    limits = Limits(hard_timeout_s=2.5)

    with pytest.raises(ConfigurationError, match=r"`hard_timeout_s=2\.5` .*placement='process'"):
        ModelServer().add("m", Adder, limits=limits)
    for handler, replicas in ((Adder, Replicas(placement="process")), (Apart, None)):
        server = ModelServer().add("m", handler, replicas=replicas, limits=limits)
        assert server.model_for("m").engine.spec.limits is limits


def test_a_handler_for_processes_must_be_one_that_another_process_can_import() -> None:
    class Local(Adder):
        """Only this function knows it."""

    with pytest.raises(ConfigurationError, match="a class at module level"):
        ModelServer().add("m", Local, replicas=Replicas(placement="process"))


def test_build_gives_the_same_application_each_time_and_nothing_can_be_added_then() -> None:
    server = ModelServer().add("m", Adder)

    app = server.build()

    assert server.build() is app
    with pytest.raises(ConfigurationError, match="is built or installed already"):
        server.add("n", Adder)


def test_a_model_is_found_by_name_and_version_and_its_newest_without() -> None:
    server = ModelServer().add("m", Adder, version="v10").add("m", Adder, version="v9")

    assert server.model_for("m").version == "v10"
    assert server.model_for("m", "v9").version == "v9"
    with pytest.raises(ModelNotFoundError, match="There is no model `x`"):
        server.model_for("x")
    with pytest.raises(ModelNotFoundError, match="version `v1` of model `m`"):
        server.model_for("m", "v1")
    assert [model.version for model in server.models()] == ["v9", "v10"]


def test_the_dependency_of_an_unknown_model_is_not_found() -> None:
    server = ModelServer().add("m", Adder)
    app = server.build()

    @app.get("/state")
    async def state(model: Any = Depends(server.model("unknown"))) -> str:  # noqa: B008 - FastAPI's way
        return str(model.state)

    with TestClient(app) as client:
        answer = client.get("/state")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_started_waits_until_the_models_are_loaded_however_long_that_takes() -> None:
    class Slow(EchoHandler):
        def load(self) -> None:
            threading.Event().wait(0.1)

    server = ModelServer(settings=ServerSettings(startup_wait_s=0)).add("m", Slow)

    assert predict(server, "m", Echo(text="a")) == Echo(text="a")


def test_started_raises_what_loading_raised_and_unloads() -> None:
    events: list[str] = []

    class Broken(EchoHandler):
        def load(self) -> None:
            raise OSError("no weights")

        def unload(self) -> None:
            events.append("unload")

    with pytest.raises(OSError, match="no weights"):
        predict(ModelServer().add("m", Broken), "m", {"text": "a"})
    assert events == ["unload"]


def test_started_enters_the_users_lifespan() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        events.append(type(app).__name__)
        yield
        events.append("closed")

    predict(ModelServer(lifespan=lifespan).add("m", Adder), "m", 1)

    assert events == ["ServingApp", "closed"]


def test_started_cannot_be_entered_twice_at_once() -> None:
    server = ModelServer().add("m", Adder)

    async def scenario() -> None:
        async with server.started(), server.started():
            pass

    with pytest.raises(ConfigurationError, match="running already"):
        asyncio.run(scenario())


def test_started_may_be_entered_again_later() -> None:
    server = ModelServer().add("m", Adder)

    assert [predict(server, "m", value) for value in (1, 2)] == [2, 3]


def test_a_mounted_application_works_when_the_parent_starts_the_models() -> None:
    server = ModelServer().add("m", Adder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with server.started():
            yield

    parent = FastAPI(lifespan=lifespan)
    parent.mount("/ml", server.build())
    with TestClient(parent) as client:
        answer = client.post("/ml/v1/models/m/predict", json=1)
        ready = client.get("/ml/ready")
        unknown = client.get("/ml/v1/models/m/predict")

    assert (answer.json(), ready.status_code, unknown.status_code) == (2, 200, 405)


def test_unload_is_called_once_for_each_load_of_each_replica() -> None:
    events: list[tuple[str, int]] = []

    class Noting(EchoHandler):
        def load(self) -> None:
            events.append(("load", self.context.replica))

        def unload(self) -> None:
            events.append(("unload", self.context.replica))

    server = ModelServer().add("m", Noting, replicas=Replicas(count=3))
    with TestClient(server.build()):
        pass

    assert sorted(events) == sorted((verb, n) for verb in ("load", "unload") for n in range(3))


def test_handlers_know_where_they_run() -> None:
    seen: list[tuple[str, str, str, int]] = []

    class Knowing(EchoHandler):
        def load(self) -> None:
            context = self.context
            seen.append((context.name, context.version, context.device, context.replica))

    server = ModelServer()
    server.add("m", Knowing, version="v3", replicas=Replicas(count=2, devices=["cpu", "cuda:7"]))
    with TestClient(server.build()):
        pass

    assert sorted(seen) == [("m", "v3", "cpu", 0), ("m", "v3", "cuda:7", 1)]


@pytest.mark.parametrize("missing", ["response", "both", "hooks"])
def test_a_handler_that_lacks_something_is_refused_with_what_to_write(missing: str) -> None:
    class Bare(ModelHandler):  # type: ignore[type-arg]  # the mistake
        def infer(self, inputs: list[Any]) -> list[Any]:
            return inputs

    class Hookless(ModelHandler[int, int]):
        pass

    with pytest.raises(ConfigurationError, match="Write"):
        ModelServer().add("m", Hookless if missing == "hooks" else Bare)


def test_fewer_than_one_worker_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`workers` must be at least 1, got 0"):
        ModelServer().add("m", Adder).run(workers=0)


def test_several_http_processes_need_a_server_that_they_can_import() -> None:
    with pytest.raises(ConfigurationError, match="make it a variable of a module"):
        ModelServer().add("m", Adder).run(workers=2)


def test_a_server_shows_its_models() -> None:
    server = ModelServer(title="T").add("a", Adder).add("b", Adder, version="v2")

    assert repr(server) == "<ModelServer 'T': a/v1, b/v2>"


def test_a_stream_can_be_read_without_http() -> None:
    server = ModelServer().add("m", EchoHandler, limits=Limits(stream_timeout_s=5))

    async def scenario() -> list[str]:
        async with server.started():
            chunks = server.model_for("m").stream({"text": "a b c"})
            return [chunk.text async for chunk in chunks]

    assert asyncio.run(asyncio.wait_for(scenario(), 10)) == ["a", "b", "c"]


def test_stopping_waits_for_a_stream_and_never_unloads_under_it() -> None:
    events: list[str] = []

    class Noting(EchoHandler):
        def warmup(self) -> None:
            """Leaves no events."""

        def stream(self, item: Echo) -> Iterator[Echo]:
            try:
                yield item
                yield item
            finally:
                events.append("stream closed")

        def unload(self) -> None:
            events.append("unload")

    server = ModelServer().add("m", Noting)

    async def scenario() -> None:
        async with server.started():
            chunks = server.model_for("m").stream({"text": "a"})
            await anext(chunks)
            await chunks.aclose()  # type: ignore[attr-defined]  # an async generator

    asyncio.run(asyncio.wait_for(scenario(), 10))

    assert events == ["stream closed", "unload"]
