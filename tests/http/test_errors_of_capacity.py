"""A server that cannot take a request now, or not in time: 503 and 504, each with its reason."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from tests.http.answers import error_of
from tests.http.waiting import until

from mlserve import Batching, Limits, ModelHandler, ModelServer, ServerSettings

PREDICT = "/v1/models/m/predict"


class Gate:
    """Blocks whoever calls `block` until `open`."""

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


class Gated(ModelHandler[str, str]):
    """Stands before the gate in the hook that the request names."""

    batching = Batching(max_size=1)
    gate: Gate

    def preprocess(self, request: str) -> str:
        return self._pass("preprocess", request)

    def infer(self, inputs: list[str]) -> list[str]:
        return [self._pass("infer", value) for value in inputs]

    def postprocess(self, output: str) -> str:
        return self._pass("postprocess", output)

    def stream(self, item: str) -> Iterator[str]:
        yield self._pass("stream", item)

    def _pass(self, hook: str, value: str) -> str:
        if value == hook:
            self.gate.block()
        return value


def gated(gate: Gate) -> type[Gated]:
    return type("GatedHere", (Gated,), {"gate": gate})


def short(seconds: float = 0.1) -> dict[str, str]:
    return {"X-Request-Timeout": str(seconds)}


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(gate: Gate) -> None:
    server = ModelServer().add("m", gated(gate), limits=Limits(max_queue_size=2))
    model = server.model_for("m")

    with TestClient(server.build()) as client, ThreadPoolExecutor(3) as pool:
        running = pool.submit(client.post, PREDICT, json="infer")
        assert gate.reached.wait(10)
        waiting = [pool.submit(client.post, PREDICT, json="x") for _ in range(2)]
        until(lambda: model.statistics().queued == 2)
        refused = client.post(PREDICT, json="x")
        refused_stream = client.post("/v1/models/m/stream", json="x")
        gate.opened.set()
        answers = [future.result(10) for future in (running, *waiting)]

    error = error_of(refused, 503, "queue_full")
    assert error["type"] == "CapacityError"
    assert error["retry_after_s"] > 0
    assert refused.headers["retry-after"].isdigit()
    error_of(refused_stream, 503, "queue_full")
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_a_request_that_finds_no_room_is_refused_before_it_is_read(gate: Gate) -> None:
    server = ModelServer().add("m", gated(gate), limits=Limits(max_queue_size=1))
    model = server.model_for("m")

    with TestClient(server.build()) as client, ThreadPoolExecutor(2) as pool:
        running = pool.submit(client.post, PREDICT, json="infer")
        assert gate.reached.wait(10)
        waiting = pool.submit(client.post, PREDICT, json="x")
        until(lambda: model.statistics().queued == 1)
        refused = client.post(PREDICT, content=b"{no JSON", headers={"Content-Type": "text/plain"})
        gate.opened.set()
        answers = [running.result(10), waiting.result(10)]

    error_of(refused, 503, "queue_full")
    assert model.statistics().refused == 1
    assert [answer.status_code for answer in answers] == [200, 200]


class Slow(ModelHandler[float, float]):
    """Takes as long as it is told; one at a time."""

    batching = Batching(max_size=1)

    def infer(self, inputs: list[float]) -> list[float]:
        threading.Event().wait(inputs[0])  # stands for a model that takes its time
        return inputs


def test_a_request_whose_turn_would_come_too_late_is_refused_at_once() -> None:
    server = ModelServer().add("m", Slow)
    model = server.model_for("m")

    with TestClient(server.build()) as client, ThreadPoolExecutor(12) as pool:
        for _ in range(5):
            client.post(PREDICT, json=0.05)
        waiting = [pool.submit(client.post, PREDICT, json=0.05) for _ in range(12)]
        until(lambda: model.statistics().queued >= 8)
        refused = client.post(PREDICT, json=0.05, headers=short(0.2))
        answers = [future.result(10) for future in waiting]

    error = error_of(refused, 503, "overloaded")
    assert 0.05 < error["retry_after_s"] < 2
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize("stage", ["preprocess", "infer", "postprocess"])
def test_a_deadline_names_the_stage_in_which_it_passed(gate: Gate, stage: str) -> None:
    server = ModelServer().add("m", gated(gate))

    with TestClient(server.build()) as client:
        late = client.post(PREDICT, json=stage, headers=short())
        gate.opened.set()
        good = client.post(PREDICT, json="good")

    error = error_of(late, 504, "deadline_exceeded")
    assert error["message"] == f"The request did not finish within 0.1 s (stage: {stage})."
    assert error["retry_after_s"] is None
    assert good.json() == "good"


def test_a_deadline_that_passes_in_the_queue_means_that_the_request_is_never_run(
    gate: Gate,
) -> None:
    ran: list[str] = []

    class Recorder(gated(gate)):  # type: ignore[misc]  # a class of this test's own gate
        def infer(self, inputs: list[str]) -> list[str]:
            ran.extend(inputs)
            return super().infer(inputs)  # type: ignore[no-any-return]  # as above

    server = ModelServer().add("m", Recorder)
    with TestClient(server.build()) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, PREDICT, json="infer")
        assert gate.reached.wait(10)
        late = client.post(PREDICT, json="late", headers=short())
        gate.opened.set()
        running.result(10)
        client.post(PREDICT, json="good")

    assert "(stage: queue)" in error_of(late, 504, "deadline_exceeded")["message"]
    assert ran == ["infer", "good"]


def test_an_expired_request_frees_its_place_in_the_queue(gate: Gate) -> None:
    server = ModelServer().add("m", gated(gate), limits=Limits(max_queue_size=1))

    with TestClient(server.build()) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, PREDICT, json="infer")
        assert gate.reached.wait(10)
        codes = [
            client.post(PREDICT, json="x", headers=short(0.05)).json()["error"]["code"]
            for _ in range(3)
        ]
        gate.opened.set()
        running.result(10)

    assert codes == ["deadline_exceeded"] * 3


def test_the_models_own_limit_ends_a_request_without_a_header(gate: Gate) -> None:
    server = ModelServer().add("m", gated(gate), limits=Limits(timeout_s=0.1))

    with TestClient(server.build()) as client:
        late = client.post(PREDICT, json="infer")
        gate.opened.set()

    error_of(late, 504, "deadline_exceeded")


def test_a_model_that_is_loading_is_not_ready(gate: Gate) -> None:
    class Loading(ModelHandler[str, str]):
        def load(self) -> None:
            gate.block()

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    server = ModelServer(settings=ServerSettings(startup_wait_s=0)).add("m", Loading)
    with TestClient(server.build()) as client:
        early = client.post(PREDICT, json="")
        gate.opened.set()
        assert server.registry.wait_loaded(10)
        later = client.post(PREDICT, json="")

    error_of(early, 503, "model_not_ready")
    assert early.headers["retry-after"] == "1"
    assert later.status_code == 200


def test_a_model_that_could_not_be_loaded_is_out_of_order_and_others_are_not() -> None:
    class Broken(ModelHandler[str, str]):
        def load(self) -> None:
            raise OSError("/srv/secret/weights.safetensors")

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    class Fine(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    settings = ServerSettings(on_load_failure="serve")
    server = ModelServer(settings=settings).add("broken", Broken).add("fine", Fine)
    with TestClient(server.build()) as client:
        broken = client.post("/v1/models/broken/predict", json="")
        fine = client.post("/v1/models/fine/predict", json="")
        ready = client.get("/ready")

    error_of(broken, 503, "model_failed")
    assert "secret" not in broken.text + ready.text
    assert fine.status_code == 200
    assert ready.status_code == 503


@pytest.mark.parametrize("action", ["predict", "stream"])
def test_a_server_that_drains_refuses_new_work_and_finishes_the_old(
    gate: Gate, action: str
) -> None:
    server = ModelServer().add("m", gated(gate))

    with TestClient(server.build()) as client, ThreadPoolExecutor(1) as pool:
        running: Any = pool.submit(
            client.post,
            f"/v1/models/m/{action}",
            json={"predict": "infer", "stream": "stream"}[action],
        )
        assert gate.reached.wait(10)
        server.registry.begin_drain()
        refused = client.post(f"/v1/models/m/{action}", json="x")
        health = client.get("/health")
        ready = client.get("/ready")
        gate.opened.set()
        finished: httpx2.Response = running.result(10)

    error_of(refused, 503, "draining")
    assert health.status_code == 200
    assert ready.json()["error"]["code"] == "draining"
    assert finished.status_code == 200


def test_what_is_not_finished_when_the_drain_ends_is_answered_with_draining(gate: Gate) -> None:
    server = ModelServer(settings=ServerSettings(drain_s=0.05)).add("m", gated(gate))
    threads = ThreadPoolExecutor(1)

    with TestClient(server.build()) as client:
        running = threads.submit(client.post, PREDICT, json="infer")
        assert gate.reached.wait(10)
    answer = running.result(10)

    error_of(answer, 503, "draining")
    threads.shutdown()


def test_an_application_whose_lifespan_never_ran_says_that_it_is_not_ready() -> None:
    client = TestClient(ModelServer().add("m", Gated).build())

    error_of(client.post(PREDICT, json=""), 503, "model_not_ready")
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
