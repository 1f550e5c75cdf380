"""With OpenTelemetry's SDK configured, each request and each batch leaves its spans."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import BaseModel
from tests.http.waiting import until
from tests.observability.spans import Spans, context_of

from mlserve import Batching, Call, InvalidInputError, Model, ModelHandler, ModelServer
from mlserve.testing import running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
PREDICT = "/v1/models/m/predict"
STREAM = "/v1/models/m/stream"
SERVER = f"POST {PREDICT}"


class Text(BaseModel):
    text: str


class Echo(ModelHandler[Text, str]):
    """Notes what its calls say of their traces."""

    batching = Batching(max_size=4)

    def __init__(self) -> None:
        self.traceparents: list[str | None] = []
        self.begun, self.released = threading.Event(), threading.Event()
        self.released.set()

    def preprocess(self, request: Text, call: Call) -> str:
        self.traceparents.append(call.traceparent)
        if request.text == "refuse":
            raise InvalidInputError("This is refused.")
        call.annotate(prompt_tokens=3, completion_tokens=2)
        return request.text

    def infer(self, inputs: list[str]) -> list[str]:
        self.begun.set()
        assert self.released.wait(10)
        if "break" in inputs:
            raise RuntimeError("It broke.")
        return inputs

    def postprocess(self, output: str) -> str:
        return output

    def stream(self, item: str) -> Iterator[str]:
        yield "a"
        yield "b"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return Spans(monkeypatch)


@pytest.fixture
def handler() -> Echo:
    return Echo()


@pytest.fixture
def client(spans: Spans, handler: Echo) -> Iterator[TestClient]:
    with TestClient(ModelServer().add("m", handler).build()) as client:
        yield client


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def within(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    times = outer.start_time, inner.start_time, inner.end_time, outer.end_time
    assert None not in times
    return list(times) == sorted(times)  # type: ignore[type-var]


def test_a_prediction_has_a_span_with_one_of_each_stage_below_it(
    client: TestClient, spans: Spans
) -> None:
    client.post(PREDICT, json={"text": "a"}, headers={"X-Request-Id": "mine"})

    server = spans.one(SERVER)
    assert spans.children_of(server) == ["preprocess", "queue", "infer", "postprocess"]
    assert all(within(spans.one(name), server) for name in spans.children_of(server))
    assert (
        facts(server).items()
        >= {
            "http.route": PREDICT,
            "http.response.status_code": 200,
            "mlserve.request_id": "mine",
            "mlserve.model": "m",
            "mlserve.version": "v1",
            "mlserve.batch_size": 1,
        }.items()
    )
    assert facts(spans.one("infer")) == {"mlserve.model": "m", "mlserve.version": "v1"}


def test_a_trace_goes_on_that_the_client_has_begun(
    client: TestClient, spans: Spans, handler: Echo
) -> None:
    client.post(PREDICT, json={"text": "a"}, headers={"traceparent": TRACEPARENT})

    server = spans.one(SERVER)
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == PARENT
    assert f"{context_of(server).trace_id:032x}" == TRACE
    assert handler.traceparents == [f"00-{TRACE}-{context_of(server).span_id:016x}-01"]


def test_a_stream_has_a_span_of_its_own_stage(client: TestClient, spans: Spans) -> None:
    client.post(STREAM, json={"text": "a"})

    server = spans.one(f"POST {STREAM}")
    assert spans.children_of(server) == ["preprocess", "queue", "stream"]
    assert within(spans.one("stream"), server)
    assert facts(server)["mlserve.chunks"] == 2


def test_the_words_of_generative_ai_are_there_where_tokens_were_noted(
    client: TestClient, spans: Spans
) -> None:
    client.post(PREDICT, json={"text": "a"})

    told = {k: v for k, v in facts(spans.one(SERVER)).items() if k.startswith("gen_ai.")}
    assert told == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
    }


@pytest.mark.parametrize(
    ("body", "code", "children"),
    [
        ({"text": 1}, "validation_error", []),
        ({"text": "refuse"}, "invalid_input", ["preprocess"]),
        ({"text": "break"}, "model_error", ["preprocess", "queue", "infer"]),
    ],
)
def test_a_failure_says_its_code_and_the_stages_that_it_came_to(
    client: TestClient, spans: Spans, body: Any, code: str, children: list[str]
) -> None:
    client.post(PREDICT, json=body)

    server = spans.one(SERVER)
    assert facts(server)["mlserve.code"] == code
    assert spans.children_of(server) == children
    assert server.status.is_ok is (code != "model_error")


def test_a_batch_has_a_span_that_is_linked_to_those_of_its_requests(
    spans: Spans, handler: Echo
) -> None:
    with running(ModelServer().add("m", handler)) as client, ThreadPoolExecutor(4) as pool:
        handler.released.clear()
        held = pool.submit(client.post, PREDICT, json={"text": "held"})
        assert handler.begun.wait(10)
        asked = [pool.submit(client.post, PREDICT, json={"text": str(n)}) for n in range(3)]
        statistics = "/v1/models/m"
        until(lambda: client.get(statistics).json()["statistics"]["queued"] == 3)
        handler.released.set()
        assert {future.result().status_code for future in [held, *asked]} == {200}
        until(lambda: len(spans.named(SERVER)) == 4)

    alone, together = sorted(spans.named("batch m"), key=lambda span: len(span.links))
    servers = {context_of(span).span_id for span in spans.named(SERVER)}
    linked = [link.context.span_id for link in (*alone.links, *together.links)]
    assert [len(alone.links), len(together.links)] == [1, 3]
    assert set(linked) == servers
    assert together.parent is None
    assert facts(together).items() >= {"mlserve.batch_size": 3, "mlserve.batch_cost": 3}.items()


def test_the_query_string_is_hidden_as_inputs_may_be_in_it(spans: Spans) -> None:
    class Scalar(ModelHandler[Text, str]):
        def stream(self, item: Text) -> Iterator[str]:
            yield item.text

    with TestClient(ModelServer().add("m", Scalar).build()) as client:
        client.get(f"{STREAM}?text=canary-4711")

    server = spans.one(f"GET {STREAM}")
    assert facts(server)["url.query"] == "REDACTED"
    assert "canary" not in str([span.to_json() for span in spans.all()])


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_and_scrapes_leave_no_span(client: TestClient, spans: Spans, path: str) -> None:
    assert client.get(path).status_code == 200
    assert client.get("/v1/models").status_code == 200

    assert [span.name for span in spans.all() if span.parent is None] == ["GET /v1/models"]


def test_dependencies_of_the_user_change_nothing_of_it(spans: Spans, handler: Echo) -> None:
    def nothing() -> None:
        """Let everybody in."""

    server = ModelServer(dependencies=[Depends(nothing)]).add("m", handler)
    with TestClient(server.build()) as client:
        client.post(PREDICT, json={"text": "a"})

    below = spans.children_of(spans.one(SERVER))
    stages = [name for name in below if not name.startswith("fastapi.")]
    assert stages == ["preprocess", "queue", "infer", "postprocess"]


def test_a_call_within_an_endpoint_is_a_span_below_the_endpoint(
    spans: Spans, handler: Echo
) -> None:
    server = ModelServer().add("m", handler)
    app = FastAPI()
    server.install(app)

    @app.post("/both")
    async def both(model: Annotated[Model, Depends(server.model("m"))]) -> list[str]:
        return [await model.predict({"text": "a"}), await model.predict({"text": "b"})]

    with TestClient(app) as client:
        assert client.post("/both").json() == ["a", "b"]

    calls = spans.named("call m")
    [endpoint] = spans.named("fastapi.endpoint")
    assert spans.children_of(endpoint) == ["call m", "call m"]
    assert spans.children_of(calls[0]) == ["preprocess", "queue", "infer", "postprocess"]
    assert facts(calls[0])["mlserve.model"] == "m"
    linked = [link.context.span_id for s in spans.named("batch m") for link in s.links]
    assert linked == [context_of(call).span_id for call in calls]


def test_a_call_within_an_endpoint_that_fails_says_so(spans: Spans, handler: Echo) -> None:
    server = ModelServer().add("m", handler)
    app = FastAPI()
    server.install(app)

    @app.post("/ask")
    async def ask(model: Annotated[Model, Depends(server.model("m"))]) -> Any:
        return await model.predict({"text": "break"})

    with TestClient(app, raise_server_exceptions=False) as client:
        client.post("/ask")

    call = spans.one("call m")
    assert facts(call)["mlserve.code"] == "model_error"
    assert not call.status.is_ok


def test_what_the_sampler_leaves_out_leaves_no_span(
    monkeypatch: pytest.MonkeyPatch, handler: Echo
) -> None:
    spans = Spans(monkeypatch, ALWAYS_OFF)

    with TestClient(ModelServer().add("m", handler).build()) as client:
        assert client.post(PREDICT, json={"text": "a"}).status_code == 200

    assert spans.all() == ()
    assert handler.traceparents == [None]


@pytest.mark.slow
def test_a_client_that_leaves_ends_its_span_with_what_there_was(
    spans: Spans, handler: Echo
) -> None:
    with running(ModelServer().add("m", handler)) as client:
        handler.released.clear()
        with pytest.raises(httpx2.TimeoutException):
            client.post(PREDICT, json={"text": "a"}, timeout=0.2)
        server = spans.one(SERVER)
        handler.released.set()

    assert facts(server)["mlserve.code"] == "client_closed_request"
    assert "preprocess" in spans.children_of(server)


def test_a_handler_can_make_spans_of_its_own_below_the_request(spans: Spans) -> None:
    class Traced(ModelHandler[str, str]):
        def preprocess(self, request: str, call: Call) -> str:
            headers = {"traceparent": call.traceparent}
            parent = TraceContextTextMapPropagator().extract(headers)
            with trace.get_tracer("mine").start_as_current_span("clean up", parent):
                return request

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    with TestClient(ModelServer().add("m", Traced).build()) as client:
        client.post(PREDICT, json="a")

    assert "clean up" in spans.children_of(spans.one(SERVER))


def test_without_an_sdk_a_call_has_no_trace(handler: Echo) -> None:
    with TestClient(ModelServer().add("m", handler).build()) as client:
        answer = client.post(PREDICT, json={"text": "a"}, headers={"traceparent": TRACEPARENT})

    assert answer.status_code == 200
    assert handler.traceparents == [None]
    assert json.loads(answer.text) == "a"
