"""Leaving clients and whole streams, under every kind of middleware and three kinds of server."""

import asyncio
import json
import logging
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.http.answers import events_of
from tests.http.waiting import until

from mlserve import Batching, Call, Cors, ModelHandler, ModelServer, ServerSettings
from mlserve.http.foreign import suspects_of, warn_of_hiding
from mlserve.testing import running

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/m/predict"
STREAM = "/v1/models/m/stream"
HIDES = "A middleware hides when clients leave"
PAUSE_S = 0.04
SOON_S = 1.0
numbers = count(1)


@dataclass
class Notes:
    """What the handler has done, by the request's text; written in its threads."""

    begun: defaultdict[str, threading.Event] = field(
        default_factory=lambda: defaultdict(threading.Event)
    )
    go_on: defaultdict[str, threading.Event] = field(
        default_factory=lambda: defaultdict(threading.Event)
    )
    told: defaultdict[str, threading.Event] = field(
        default_factory=lambda: defaultdict(threading.Event)
    )
    n_chunks: Counter[str] = field(default_factory=Counter)


def handler_of(notes: Notes) -> type[ModelHandler[str, str]]:
    class Noting(ModelHandler[str, str]):
        batching = Batching(max_size=1)

        def infer(self, inputs: list[str], calls: list[Call]) -> list[str]:
            (text,), (call,) = inputs, calls
            notes.begun[text].set()
            while not notes.go_on[text].wait(0.002):
                if call.cancelled:
                    notes.told[text].set()
                    break
            return inputs

        def stream(self, item: str) -> Iterator[str]:
            kind = item.partition(" ")[0]
            try:
                for number in count(1):
                    if kind == "failing" and number == 4:
                        raise RuntimeError("It broke.")
                    notes.n_chunks[item] += 1
                    yield item
                    notes.go_on[item].wait(10 if kind == "waiting" else PAUSE_S)
                    if kind == "waiting" and number == 2:
                        return
            finally:
                notes.told[item].set()

    return Noting


class PassThrough:
    """A user's pure ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Any) -> None:
            await send(message)

        await self.app(scope, receive, send_on)


async def pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


class Reading(BaseHTTPMiddleware):
    """A user's middleware of the kind that most tutorials show."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        answer = await call_next(request)
        answer.headers["X-Seen"] = "yes"
        return answer


class ReadingBody(BaseHTTPMiddleware):
    """A user's middleware that looks at the body first, as audit logs and signatures do."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        body = await request.body()
        answer = await call_next(request)
        answer.headers["X-Received"] = str(len(body))
        return answer


HTTP = Middleware(BaseHTTPMiddleware, dispatch=pass_on)
CORS = Middleware(CORSMiddleware, allow_origins=["https://a.example"])
GZIP = Middleware(GZipMiddleware, minimum_size=0)
OURS = ServerSettings(cors=Cors(allow_origins=("https://a.example",)), gzip_min_bytes=0)
# What `ModelServer` is given; `None` = the models are installed in another application.
STACKS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ours": {},
    "ours by settings": {"settings": OURS},
    "CORS": {"middleware": [CORS]},
    "gzip": {"middleware": [GZIP]},
    "pure ASGI": {"middleware": [Middleware(PassThrough)]},
    "BaseHTTP": {"middleware": [Middleware(Reading)]},
    "two BaseHTTP": {"middleware": [Middleware(Reading), HTTP]},
    "decorated": {},
    "BaseHTTP that reads": {"middleware": [Middleware(ReadingBody)]},
    "all": {
        "settings": OURS,
        "middleware": [HTTP, Middleware(ReadingBody), Middleware(PassThrough), GZIP, CORS],
    },
}
SERVERS = ("mlserve", "httptools", "h11")


def app_of(stack: str, notes: Notes) -> tuple[ModelServer, FastAPI]:
    options = STACKS[stack]
    server = ModelServer(**(options or {})).add("m", handler_of(notes))
    if options is None:
        app = FastAPI()
        server.install(app)
    else:
        app = server.build()
    if stack == "decorated":
        app.middleware("http")(pass_on)
    return server, app


@contextmanager
def foreign(app: FastAPI, http: Any) -> Iterator[httpx2.Client]:
    """Run an application under plain uvicorn."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, http=http, log_config=None, access_log=False, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started)
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(15)


@dataclass(frozen=True)
class Setup:
    """One combination, running."""

    stack: str
    server: str
    client: httpx2.Client
    models: ModelServer
    notes: Notes

    def n_queued(self) -> int:
        return self.models.model_for("m").statistics().queued

    def post(self, text: str) -> socket.socket:
        """Send a request and leave its answer to be read, or not."""
        address = self.client.base_url.host, self.client.base_url.port or 0
        connection = socket.create_connection(address, 10)
        body = json.dumps(text).encode()
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return connection


@pytest.fixture(
    scope="module",
    params=[(stack, server) for server in SERVERS for stack in STACKS],
    ids=lambda param: f"{param[0]}, {param[1]}",
)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    stack, server = request.param
    notes = Notes()
    models, app = app_of(stack, notes)
    with running(app) if server == "mlserve" else foreign(app, server) as client:
        until(lambda: models.model_for("m").state == "ready")
        yield Setup(stack, server, client, models, notes)


def text_of(kind: str) -> str:
    return f"{kind} {next(numbers)}"


def is_soon(event: threading.Event) -> bool:
    return event.wait(SOON_S)


def test_a_client_that_leaves_the_queue_is_never_computed(setup: Setup) -> None:
    first, second = text_of("first"), text_of("second")
    with closing(setup.post(first)):
        assert setup.notes.begun[first].wait(5)
        waiting = setup.post(second)
        until(lambda: setup.n_queued() == 1)
        waiting.close()
        until(lambda: setup.n_queued() == 0, SOON_S)
        setup.notes.go_on[first].set()
        last = text_of("last")
        setup.notes.go_on[last].set()
        answer = setup.client.post(PREDICT, json=last)

    assert answer.json() == last
    assert not setup.notes.begun[second].is_set()


def test_a_client_that_leaves_amid_infer_is_told_to_the_handler(setup: Setup) -> None:
    text = text_of("held")
    connection = setup.post(text)
    assert setup.notes.begun[text].wait(5)
    connection.close()
    was_told = is_soon(setup.notes.told[text])
    setup.notes.go_on[text].set()

    assert was_told


def test_a_client_that_leaves_a_stream_costs_two_more_chunks_at_most(setup: Setup) -> None:
    text = text_of("endless")
    with setup.client.stream("POST", STREAM, json=text) as answer:
        lines = (line for line in answer.iter_lines() if line)
        chunks = [next(lines) for _ in range(3)]
    n_then = setup.notes.n_chunks[text]
    was_closed = is_soon(setup.notes.told[text])

    assert chunks == [f'data: "{text}"'] * 3
    assert was_closed
    assert setup.notes.n_chunks[text] <= n_then + 2


def test_a_stream_that_breaks_ends_with_its_error_and_one_done(setup: Setup) -> None:
    text = text_of("failing")

    *chunks, error, end = events_of(setup.client.post(STREAM, json=text))

    assert chunks == [json.dumps(text)] * 3
    assert json.loads(error)["error"]["code"] == "model_error"
    assert end == "[DONE]"


def test_events_are_not_held_back_by_compression(setup: Setup) -> None:
    text = text_of("waiting")
    with setup.client.stream(
        "POST", STREAM, json=text, headers={"Accept-Encoding": "gzip"}
    ) as answer:
        lines = (line for line in answer.iter_lines() if line)
        first = next(lines)
        setup.notes.go_on[text].set()  # not before the first one was read
        rest = list(lines)

    assert first == f'data: "{text}"'
    assert rest == [first, "data: [DONE]"]


@pytest.mark.parametrize("server", ["mlserve", "httptools"])
def test_a_client_that_leaves_while_a_dependency_holds_its_body_is_noticed(server: str) -> None:
    has_begun, go_on, notes = threading.Event(), threading.Event(), Notes()

    async def signed(request: Request) -> None:
        await request.body()
        has_begun.set()
        await asyncio.to_thread(go_on.wait, 10)

    models = ModelServer(dependencies=[Depends(signed)]).add("m", handler_of(notes))
    app = models.build()
    with running(app) if server == "mlserve" else foreign(app, server) as client:
        until(lambda: models.model_for("m").state == "ready")
        setup = Setup("ours", server, client, models, notes)
        connection = setup.post("left")
        assert has_begun.wait(5)
        connection.close()
        answered = client.get("/health")  # the server has seen the close by now
        go_on.set()
        until(lambda: models.model_for("m").statistics().requests == 1)
        until(lambda: models.model_for("m").statistics().in_flight == 0)

    assert answered.status_code == 200
    assert notes.told["left"].is_set() or not notes.begun["left"].is_set()


class Replaying:
    """A user's middleware that gives the body again each time it is asked, without a pause."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await Request(scope, receive).body()

        async def replay() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


class Patching(BaseHTTPMiddleware):
    """A user's middleware that sets the request's `receive`, as many answers on the web advise."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        body = await request.body()

        async def replay() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        request._receive = replay
        return await call_next(request)


class Ending:
    """A user's middleware that gives the body once, and then waits for what never comes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages = [{"type": "http.request", "body": await Request(scope, receive).body()}]

        async def replay() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        await self.app(scope, replay, send)


@pytest.mark.parametrize("middleware", [Replaying, Patching, Ending])
@pytest.mark.parametrize("server", SERVERS)
def test_a_built_application_sees_past_middleware_that_hides_leaving(
    middleware: Any, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    models = ModelServer(middleware=[Middleware(middleware)]).add("m", handler_of(notes))
    app = models.build()
    with running(app) if server == "mlserve" else foreign(app, server) as client:
        until(lambda: models.model_for("m").state == "ready")
        setup = Setup("hiding", server, client, models, notes)
        left = setup.post("left")
        assert notes.begun["left"].wait(5)
        left.close()
        was_told = is_soon(notes.told["left"])
        notes.go_on["left"].set()
        with client.stream("POST", STREAM, json="endless x") as answer:
            assert next(answer.iter_lines())
        was_closed = is_soon(notes.told["endless x"])

    assert was_told
    assert was_closed
    assert HIDES not in caplog.text


@pytest.mark.parametrize("middleware", [Replaying, Patching])
@pytest.mark.parametrize("server", SERVERS)
def test_middleware_that_hides_leaving_harms_nobody_and_is_told_of(
    middleware: Any, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    models, app = app_of("none", notes)
    app.add_middleware(middleware)
    with running(app) if server == "mlserve" else foreign(app, server) as client:
        until(lambda: models.model_for("m").state == "ready")
        setup = Setup("hiding", server, client, models, notes)
        with closing(setup.post("long")) as connection:
            assert notes.begun["long"].wait(5)
            if server != "mlserve":
                until(lambda: HIDES in caplog.text)
            beside = client.get("/health")
            notes.go_on["long"].set()
            answer = connection.recv(65_536)
        whole = events_of(client.post(STREAM, json="failing x"))
        left = setup.post("left")
        assert notes.begun["left"].wait(5)
        left.close()
        was_told = notes.told["left"].wait(0.2)
        notes.go_on["left"].set()

    assert beside.status_code == 200
    assert b" 200 OK" in answer
    assert (len(whole), whole[-1]) == (5, "[DONE]")
    assert was_told == (server == "mlserve")
    warnings = [line for line in caplog.messages if HIDES in line]
    assert len(warnings) == (server != "mlserve")
    assert all(middleware.__qualname__ in line for line in warnings)


def test_only_the_users_own_middleware_is_suspected() -> None:
    stack = [Middleware(GZipMiddleware), Middleware(PassThrough), HTTP]
    app = ModelServer(middleware=stack).build()

    @app.middleware("http")
    async def decorated(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    names = [name.rpartition(".")[2] for name in suspects_of(app)]

    assert names == ["decorated", "PassThrough", "pass_on"]
    assert suspects_of(object()) == []


def test_an_unknown_application_is_warned_of_without_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)

    warn_of_hiding(None)

    assert "unknown" in caplog.text


@pytest.mark.parametrize(
    "stack", ["BaseHTTP", "two BaseHTTP", "BaseHTTP that reads", "pure ASGI", "all"]
)
def test_middleware_that_passes_leaving_on_is_not_warned_of(
    stack: str, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    models, app = app_of(stack, notes)
    with foreign(app, "httptools") as client:
        until(lambda: models.model_for("m").state == "ready")
        with closing(Setup(stack, "httptools", client, models, notes).post("long")) as connection:
            assert notes.begun["long"].wait(5)
            with client.stream("POST", STREAM, json="endless x") as answer:
                assert next(answer.iter_lines())
            assert notes.told["endless x"].wait(5)
            notes.go_on["long"].set()
            assert connection.recv(65_536)

    assert HIDES not in caplog.text
