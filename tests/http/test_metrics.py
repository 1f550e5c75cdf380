"""`GET /metrics`: every family, every outcome, and nothing that a client has chosen."""

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient
from prometheus_client import Counter
from tests.http.waiting import until
from tests.observability.reading import Scrape, scrape

from mlserve import (
    Batching,
    Cache,
    Call,
    Limits,
    ModelHandler,
    ModelServer,
    Replicas,
    ServerSettings,
    errors,
)
from mlserve.http import errors as http_errors
from mlserve.observability.metrics import FAMILIES
from mlserve.testing import running

CODES = {getattr(errors, name).code for name in errors.__all__} | {
    *http_errors._CODES.values(),
    "error",
    "internal_error",
    "ok",
}
GAUGES = ("mlserve_requests_in_flight", "mlserve_queue_depth")
_numbers = itertools.count()
SAID = Counter("test_metrics_said", "Words that the handler of a test has said.")


class Gated(ModelHandler[str, str]):
    """Waits where a request tells it to, until it is let go."""

    batching = Batching(max_size=1)

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.released = threading.Event()

    def preprocess(self, request: str, call: Call) -> str:
        if request == "refuse":
            raise ValueError("This is nothing for a client.")
        call.annotate(prompt_tokens=len(request), completion_tokens=1)
        return request

    def infer(self, inputs: list[str]) -> list[str]:
        SAID.inc(len(inputs))
        if "break" in inputs:
            raise RuntimeError("It broke.")
        if "fill the memory" in inputs:
            raise MemoryError
        if "wait" in inputs:
            self.begun.release()
            assert self.released.wait(10)
        return inputs

    def stream(self, item: str) -> Iterator[str]:
        if item == "wait before":
            self.begun.release()
            assert self.released.wait(10)
        yield from ("a", "b", "c")
        if item == "break":
            raise RuntimeError("It broke.")
        if item == "wait":
            self.begun.release()
            assert self.released.wait(10)
            yield "d"


class Scene:
    """A server with one model, a client of it, and what `/metrics` tells of the model."""

    def __init__(self, name: str, handler: Gated, client: httpx2.Client) -> None:
        self.handler = handler
        self.client = client
        self.labels = {"model": name, "version": "v1"}
        self._predict = f"/v1/models/{name}/predict"
        self._stream = f"/v1/models/{name}/stream"
        self._sockets: list[socket.socket] = []

    def scrape(self) -> Scrape:
        return scrape(self.client)

    def count(self, **labels: str) -> float | None:
        return self.scrape().value("mlserve_requests_total", **self.labels, **labels)

    def gauges(self) -> dict[str, float | None]:
        found = self.scrape()
        return {name: found.value(name, **self.labels) for name in GAUGES}

    def predict(self, text: Any, **headers: str) -> httpx2.Response:
        return self.client.post(self._predict, json=text, headers=headers)

    def stream(self, text: str) -> httpx2.Response:
        return self.client.post(self._stream, json=text)

    def hold(self, text: str = "wait", *, streamed: bool = False) -> socket.socket:
        """Send a request and wait until it is in a hook; closing the socket leaves it."""
        sock = self.send(text, streamed=streamed)
        assert self.handler.begun.acquire(timeout=10)
        return sock

    def send(self, text: str, *, streamed: bool = False, n_missing: int = 0) -> socket.socket:
        """Send a request and do not wait for its answer; closing the socket leaves it."""
        url = self.client.base_url
        sock = socket.create_connection((url.host, url.port or 80), timeout=10)
        self._sockets.append(sock)
        path, body = self._stream if streamed else self._predict, json.dumps(text)
        length = len(body) + n_missing
        head = f"Host: test\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
        sock.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n{body}".encode())
        return sock

    def close(self) -> None:
        self.handler.released.set()
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    handler = Gated()
    name = f"gated-{next(_numbers)}"  # the families are the process's, the models the test's
    server = ModelServer(settings=ServerSettings(drain_s=5, body_timeout_s=0.2)).add(
        name,
        handler,
        replicas=Replicas(max_streams=1),
        limits=Limits(max_queue_size=1, max_body_bytes=1_000),
    )
    with running(server) as client:
        scene = Scene(name, handler, client)
        try:
            yield scene
        finally:
            scene.close()


def test_every_family_stands_there_from_the_start_with_help_and_kind() -> None:
    class Silent(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    with TestClient(
        ModelServer().add("silent", Silent, version="v3", cache=Cache()).build()
    ) as client:
        found = scrape(client)

    of_models = [family for family in FAMILIES if "model" in family._labelnames]
    described = [metric for family in of_models for metric in family.describe()]
    shown = {
        name
        for name in (metric.name for metric in described)
        for sample in found.samples
        if sample.name.startswith(name)
        if {"model": "silent", "version": "v3"}.items() <= sample.labels.items()
    }
    assert shown == {metric.name for metric in described}
    assert {m.name: found.kinds[m.name] for m in described} == {m.name: m.type for m in described}
    assert found.value("mlserve_model_ready", model="silent", version="v3") == 1
    assert found.value("mlserve_requests_total", model="silent", version="v3", code="ok") == 0


@pytest.mark.slow
def test_each_outcome_is_counted_as_often_as_it_was_answered(scene: Scene) -> None:
    for _ in range(3):
        assert scene.predict("fine").status_code == 200
    assert scene.predict("refuse").status_code == 422
    assert scene.predict(1).status_code == 422
    assert scene.predict("break").status_code == 500
    assert scene.stream("fine").status_code == 200

    counts = {code: scene.count(code=code) for code in ("ok", "invalid_input", "model_error")}
    assert counts == {"ok": 4, "invalid_input": 1, "model_error": 1}
    assert scene.count(code="validation_error") == 1
    found = scene.scrape()
    assert found.value("mlserve_tokens_total", **scene.labels, kind="prompt") == 21
    assert found.value("mlserve_tokens_total", **scene.labels, kind="completion") == 5
    assert found.value("mlserve_batch_size_count", **scene.labels) == 4
    assert found.value("mlserve_request_duration_seconds_count", **scene.labels) == 7


@pytest.mark.slow
def test_the_times_of_chunks_are_those_of_the_events(scene: Scene) -> None:
    scene.stream("fine")
    scene.stream("break")

    found = scene.scrape()
    assert found.value("mlserve_time_to_first_chunk_seconds_count", **scene.labels) == 2
    assert found.value("mlserve_time_between_chunks_seconds_count", **scene.labels) == 4


def test_what_a_handler_counts_itself_is_shown() -> None:
    with TestClient(ModelServer().add("own", Gated).build()) as client:
        before = scrape(client).value("test_metrics_said_total")
        client.post("/v1/models/own/predict", json="a")

        assert scrape(client).value("test_metrics_said_total") == (before or 0) + 1


def test_calls_within_the_process_are_counted_like_requests() -> None:
    server = ModelServer().add("within", Gated)
    app = server.build()

    @app.get("/ask")
    async def ask() -> list[str]:
        model = server.model_for("within")
        return [await model.predict("a"), *[chunk async for chunk in model.stream("b")]]

    with TestClient(app) as client:
        assert client.get("/ask").json() == ["a", "a", "b", "c"]
        found = scrape(client)

    labels = {"model": "within", "version": "v1"}
    assert found.value("mlserve_requests_total", **labels, code="ok") == 2
    assert found.value("mlserve_time_to_first_chunk_seconds_count", **labels) == 1


Ending = Callable[[Scene], None]


def success(scene: Scene) -> None:
    scene.predict("fine")


def streamed(scene: Scene) -> None:
    scene.stream("fine")


def wrong_schema(scene: Scene) -> None:
    scene.predict(1)


def refused_by_preprocess(scene: Scene) -> None:
    scene.predict("refuse")


def broken_infer(scene: Scene) -> None:
    scene.predict("break")


def broken_stream(scene: Scene) -> None:
    scene.stream("break")


def deadline_while_running(scene: Scene) -> None:
    assert scene.predict("wait", **{"X-Request-Timeout": "0.05"}).status_code == 504
    scene.handler.released.set()


def deadline_while_queued(scene: Scene) -> None:
    scene.hold()
    assert scene.predict("fine", **{"X-Request-Timeout": "0.05"}).status_code in (503, 504)
    scene.handler.released.set()


def left_while_running(scene: Scene) -> None:
    scene.hold().close()
    until(lambda: scene.count(code="client_closed_request") == 1)
    scene.handler.released.set()


def left_while_queued(scene: Scene) -> None:
    scene.hold()
    queued = scene.send("fine")
    until(lambda: scene.gauges()["mlserve_queue_depth"] == 1)
    queued.close()
    until(lambda: scene.count(code="client_closed_request") == 1)
    scene.handler.released.set()


def left_while_streaming(scene: Scene) -> None:
    with scene.client.stream("POST", scene._stream, json="wait") as answer:
        next(answer.iter_lines())
    until(lambda: scene.count(code="client_closed_request") == 1)
    scene.handler.released.set()


def no_room(scene: Scene) -> None:
    scene.hold()
    scene.send("fine")
    until(lambda: scene.gauges()["mlserve_queue_depth"] == 1)
    assert scene.predict("fine").status_code == 503
    assert scene.scrape().total("mlserve_requests_rejected_total", **scene.labels) == 1
    scene.handler.released.set()


def deadline_while_streaming(scene: Scene) -> None:
    answer = scene.client.post(scene._stream, json="wait", headers={"X-Request-Timeout": "0.05"})
    assert '"code": "deadline_exceeded"' in answer.text
    scene.handler.released.set()


def left_before_the_first_chunk(scene: Scene) -> None:
    scene.hold("wait before", streamed=True).close()
    until(lambda: scene.count(code="client_closed_request") == 1)
    scene.handler.released.set()


def left_while_waiting_to_stream(scene: Scene) -> None:
    scene.hold(streamed=True)
    waiting = scene.send("fine", streamed=True)
    until(lambda: scene.gauges()["mlserve_queue_depth"] == 1)
    waiting.close()
    until(lambda: scene.count(code="client_closed_request") == 1)
    scene.handler.released.set()


def left_while_sending(scene: Scene) -> None:
    scene.send("fine", n_missing=1).close()
    until(lambda: scene.count(code="client_closed_request") == 1)


def too_large(scene: Scene) -> None:
    assert scene.predict("a" * 2_000).status_code == 413


def too_slow(scene: Scene) -> None:
    scene.send("fine", n_missing=1)
    until(lambda: scene.count(code="request_timeout") == 1)


def out_of_memory(scene: Scene) -> None:
    assert scene.predict("fill the memory").status_code == 507


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        success,
        streamed,
        wrong_schema,
        refused_by_preprocess,
        broken_infer,
        broken_stream,
        deadline_while_running,
        deadline_while_queued,
        left_while_running,
        left_while_queued,
        left_while_streaming,
        no_room,
        deadline_while_streaming,
        left_before_the_first_chunk,
        left_while_waiting_to_stream,
        left_while_sending,
        too_large,
        too_slow,
        out_of_memory,
    ],
)
def test_the_gauges_are_zero_again_however_a_request_has_ended(scene: Scene, end: Ending) -> None:
    end(scene)

    until(lambda: scene.gauges() == dict.fromkeys(GAUGES, 0.0))
    until(lambda: scene.scrape().total("mlserve_requests_total", **scene.labels) >= 1)


@pytest.mark.slow
def test_the_gauges_tell_what_runs_and_what_waits(scene: Scene) -> None:
    scene.hold()
    scene.send("fine")

    until(lambda: scene.gauges() == dict(zip(GAUGES, (2.0, 1.0), strict=True)))
    found = scene.scrape()
    assert found.value("mlserve_queue_capacity", **scene.labels) == 1
    assert found.value("mlserve_replicas", **scene.labels) == 1


@pytest.mark.slow
def test_a_drain_leaves_no_request_in_the_gauges() -> None:
    handler = Gated()
    settings = ServerSettings(drain_s=0.1)
    server = ModelServer(settings=settings).add("drained", handler)
    with running(server) as client:
        scene = Scene("drained", handler, client)
        scene.hold()
        handler_ends = threading.Timer(0.5, handler.released.set)
        handler_ends.start()
    scene.close()
    handler_ends.join()

    with TestClient(ModelServer().add("drained", Gated).build()) as later:
        found = scrape(later)
    labels = {"model": "drained", "version": "v1"}
    assert found.value("mlserve_requests_total", **labels, code="draining") == 1
    assert [found.value(name, **labels) for name in GAUGES] == [0, 0]


GARBAGE = "canary\u00e9-4711"


def ask_garbage(client: TestClient) -> None:
    for path in (
        f"/v1/models/{GARBAGE}/predict",
        f"/v1/models/{GARBAGE}/stream",
        f"/v9/models/bounded/{GARBAGE}",
        f"/v4711/models/bounded/predict?x={GARBAGE}",
        f"/models/{GARBAGE}/predict",
        f"/v{'9' * 50}/models/bounded/predict",
        f"/{GARBAGE}",
        "/v1/models/bounded/predict",
    ):
        for method in ("GET", "POST", "PUT", "TRACE", "CANARY4711"):
            headers = {
                "X-Request-Id": "canary 4711",
                "X-Request-Timeout": "canary-4711",
                "X-Request-Priority": "canary-4711",
                "Authorization": "Bearer canary-4711",
                "User-Agent": "canary-4711",
            }
            client.request(method, path, content=b'"canary-4711"', headers=headers)


def test_label_values_come_from_the_server_alone_whatever_clients_send() -> None:
    server = ModelServer().add("bounded", Gated).add("bounded", Gated, version="v4")
    with TestClient(server.build()) as client:
        before = scrape(client)
        ask_garbage(client)
        once = scrape(client)
        ask_garbage(client)
        twice = scrape(client)

    new = "mlserve_requests_total"
    assert once.labels(new, "model") - before.labels(new, "model") <= {"-"}
    assert once.labels(new, "version") - before.labels(new, "version") <= {"-", "v1"}
    assert once.labels(new, "code") <= CODES
    assert len(twice.samples) == len(once.samples)
    assert "4711" not in str([sample.labels for sample in twice.samples])


def test_it_can_be_switched_off() -> None:
    settings = ServerSettings(expose_metrics=False)
    with TestClient(ModelServer(settings=settings).add("off", Gated).build()) as client:
        assert client.get("/metrics").status_code == 404
        assert client.post("/v1/models/off/predict", json="a").status_code == 200


def test_the_dependencies_of_the_server_stand_before_it() -> None:
    def require_key(key: Annotated[str, Header()] = "") -> None:
        if key != "right":
            raise HTTPException(401)

    server = ModelServer(dependencies=[Depends(require_key)]).add("guarded", Gated)
    with TestClient(server.build()) as client:
        assert client.get("/metrics").status_code == 401
        assert scrape(client, headers={"key": "right"}).total("mlserve_model_ready") >= 1


def test_an_application_that_the_models_are_installed_in_has_it_below_the_prefix() -> None:
    app = FastAPI()
    ModelServer().add("within-app", Gated).install(app, prefix="/ml")

    with TestClient(app) as client:
        found = scrape(client, "/ml/metrics")

    assert found.value("mlserve_model_ready", model="within-app", version="v1") == 1


def test_a_scraper_is_answered_in_the_format_that_it_asks_for() -> None:
    with TestClient(ModelServer().add("formats", Gated).build()) as client:
        plain = client.get("/metrics")
        modern = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})

    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")
