"""The probes: alive from the first moment, ready only when every model is."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
from fastapi.testclient import TestClient
from tests.http.answers import MEMBERS
from tests.http.waiting import until

from mlserve import ModelHandler, ModelServer, Replicas, ServerSettings
from mlserve.testing import EchoHandler


class Gate:
    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def block(self) -> None:
        self.reached.set()
        assert self.opened.wait(10)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


class Plain(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


class Broken(Plain):
    def load(self) -> None:
        raise OSError("/srv/secret/weights.safetensors")


def at_once(on_load_failure: Literal["exit", "serve"] = "exit") -> ServerSettings:
    return ServerSettings(startup_wait_s=0, on_load_failure=on_load_failure)


def test_a_server_whose_models_are_ready_is_ready() -> None:
    with TestClient(ModelServer().add("echo", EchoHandler).build()) as client:
        health, ready = client.get("/health"), client.get("/ready")

    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "models": [
            {
                "name": "echo",
                "version": "v1",
                "state": "ready",
                "reason": None,
                "progress": 1.0,
                "note": None,
            }
        ],
    }


def test_a_server_without_models_is_alive_and_never_ready() -> None:
    with TestClient(ModelServer().build()) as client:
        health, ready = client.get("/health"), client.get("/ready")

    assert health.status_code == 200
    assert ready.status_code == 503
    assert ready.json()["error"]["code"] == "model_not_ready"


def test_while_a_model_loads_the_server_is_alive_and_tells_progress(gate: Gate) -> None:
    class Loading(Plain):
        def load(self) -> None:
            self.context.progress(0.25, "reading shard 1 of 4")
            gate.block()

    server = ModelServer(settings=at_once()).add("loading", Loading).add("echo", EchoHandler)
    with TestClient(server.build()) as client:
        assert gate.reached.wait(10)
        until(lambda: server.model_for("echo").state == "ready")
        health, ready = client.get("/health"), client.get("/ready")
        echo = client.post("/v1/models/echo/predict", json={"text": "a"})
        gate.opened.set()
        assert server.registry.wait_loaded(10)
        later = client.get("/ready")

    assert health.status_code == 200
    assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
    body = ready.json()
    assert body["status"] == "not_ready"
    assert body["error"].keys() == MEMBERS
    assert body["error"]["code"] == "model_not_ready"
    assert "loading" in body["error"]["message"]
    loading = next(model for model in body["models"] if model["name"] == "loading")
    assert loading["state"] == "loading"
    assert (loading["progress"], loading["note"]) == (0.25, "reading shard 1 of 4")
    assert echo.status_code == 200
    assert later.status_code == 200


def test_the_progress_of_several_replicas_is_their_mean(gate: Gate) -> None:
    class Loading(Plain):
        def load(self) -> None:
            if self.context.replica == 0:
                self.context.progress(0.5)
                gate.block()

    server = ModelServer(settings=at_once()).add("m", Loading, replicas=Replicas(count=2))
    with TestClient(server.build()) as client:
        assert gate.reached.wait(10)
        until(lambda: server.model_for("m").engine.progress.get(0) is not None)
        (model,) = client.get("/ready").json()["models"]
        gate.opened.set()

    assert 0.25 <= model["progress"] <= 0.75


def test_while_infer_blocks_the_probes_answer(gate: Gate) -> None:
    class Blocking(Plain):
        def infer(self, inputs: list[str]) -> list[str]:
            gate.block()
            return inputs

    app = ModelServer().add("m", Blocking).build()
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        request = pool.submit(client.post, "/v1/models/m/predict", json="")
        assert gate.reached.wait(10)
        statuses = [client.get(path).status_code for path in ("/health", "/ready", "/v1/models")]
        gate.opened.set()
        answer = request.result(10)

    assert statuses == [200, 200, 200]
    assert answer.status_code == 200


def test_warm_up_that_fails_means_not_ready() -> None:
    class Cold(Plain):
        def examples(self) -> list[str]:
            return ["a"]

        def infer(self, inputs: list[str]) -> list[str]:
            raise RuntimeError("/srv/secret")

    with TestClient(ModelServer(settings=at_once("serve")).add("m", Cold).build()) as client:
        until(lambda: client.get("/ready").json()["error"]["code"] == "model_failed")
        ready = client.get("/ready")

    assert ready.status_code == 503
    assert "secret" not in ready.text


def test_a_load_that_fails_is_told_by_name_of_the_exception_only() -> None:
    settings = ServerSettings(on_load_failure="serve")
    server = ModelServer(settings=settings).add("broken", Broken).add("echo", EchoHandler)

    with TestClient(server.build()) as client:
        ready = client.get("/ready")

    assert ready.status_code == 503
    assert ready.json()["error"]["code"] == "model_failed"
    states = {model["name"]: (model["state"], model["reason"]) for model in ready.json()["models"]}
    assert states["broken"] == ("failed", "loading failed with OSError")
    assert states["echo"] == ("ready", None)
    assert "secret" not in ready.text


def test_a_load_that_fails_ends_the_start_and_unloads_the_others() -> None:
    unloaded: list[str] = []

    class Fine(Plain):
        def unload(self) -> None:
            unloaded.append("fine")

    class BrokenToo(Broken):
        def unload(self) -> None:
            unloaded.append("broken")

    app = ModelServer().add("fine", Fine).add("broken", BrokenToo).build()
    with pytest.raises(OSError, match="weights"), TestClient(app):
        pass

    assert sorted(unloaded) == ["broken", "fine"]


def test_a_load_that_takes_too_long_is_a_failure(gate: Gate) -> None:
    class Hanging(Plain):
        def load(self) -> None:
            gate.block()

    settings = ServerSettings(load_timeout_s=0.05, on_load_failure="serve")
    server = ModelServer(settings=settings).add("m", Hanging)
    with TestClient(server.build()) as client:
        until(lambda: server.model_for("m").state == "failed")
        ready = client.get("/ready")
        gate.opened.set()

    assert ready.json()["models"][0]["reason"] == "loading failed with TimeoutError"


@pytest.mark.parametrize("on_load_failure", ["exit", "serve"])
def test_a_late_failure_is_told_to_who_runs_the_server_if_it_is_to_exit(
    gate: Gate, on_load_failure: Literal["exit", "serve"]
) -> None:
    class LateBroken(Plain):
        def load(self) -> None:
            gate.block()
            raise OSError("no weights")

    told: list[str] = []
    server = ModelServer(settings=at_once(on_load_failure)).add("m", LateBroken)
    server.registry.on_late_failure = told.append
    with TestClient(server.build()) as client:
        before = client.get("/ready").json()["error"]["code"]
        gate.opened.set()
        until(lambda: client.get("/ready").json()["error"]["code"] == "model_failed")
        assert not server.registry.wait_loaded(10)

    assert before == "model_not_ready"
    assert len(told) == (on_load_failure == "exit")


def test_the_start_waits_for_models_as_long_as_it_is_told_to(gate: Gate) -> None:
    class Loading(Plain):
        def load(self) -> None:
            gate.block()

    timer = threading.Timer(0.1, gate.opened.set)
    settings = ServerSettings(startup_wait_s=float("inf"))
    timer.start()
    with TestClient(ModelServer(settings=settings).add("m", Loading).build()) as client:
        ready = client.get("/ready")

    assert ready.status_code == 200


def test_ready_is_false_from_the_first_moment_of_a_drain() -> None:
    server = ModelServer().add("echo", EchoHandler)

    with TestClient(server.build()) as client:
        server.registry.is_draining = True
        health, ready = client.get("/health"), client.get("/ready")
        still = client.post("/v1/models/echo/predict", json={"text": "a"})

    assert health.status_code == 200
    assert ready.status_code == 503
    assert ready.json()["error"]["code"] == "draining"
    assert still.status_code == 200
