"""The short way to a model's route is taken where nobody could tell the difference, only there."""

from typing import Any

import pytest
from fastapi import Depends, Request
from fastapi.testclient import TestClient
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mlserve import Cors, ModelServer, ServerSettings
from mlserve.testing import EchoHandler

PREDICT = "/v1/models/echo/predict"


class Spy:
    """An ASGI middleware that notes the paths it sees."""

    seen: list[str] = []  # noqa: RUF012 - shared by all instances on purpose

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.seen.append(scope["path"])
        await self._app(scope, receive, send)


async def nothing(request: Request) -> None:
    """A dependency, which makes FastAPI's machinery necessary."""


def test_a_middleware_of_the_user_sees_the_requests_of_models() -> None:
    Spy.seen.clear()
    app = ModelServer(middleware=[Middleware(Spy)]).add("echo", EchoHandler).build()

    with TestClient(app) as client:
        client.post(PREDICT, json={"text": "a"})

    assert Spy.seen == [PREDICT]


def test_a_middleware_that_is_added_after_the_build_sees_them_too() -> None:
    Spy.seen.clear()
    app = ModelServer().add("echo", EchoHandler).build()
    app.add_middleware(Spy)

    with TestClient(app) as client:
        client.post(PREDICT, json={"text": "a"})

    assert Spy.seen == [PREDICT]


def test_a_path_that_is_a_routes_template_is_not_found() -> None:
    app = ModelServer().add("echo", EchoHandler).build()

    with TestClient(app) as client:
        answer = client.post("/v1/models/{name}/{action}", json={"text": "a"})

    assert answer.status_code == 404


@pytest.mark.parametrize("body", [b'{"text": "a"}', b'{"text": 1}', b"{", b"\xff", b""])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_both_ways_answer_the_same(body: bytes, content_type: str) -> None:
    lean = ModelServer().add("echo", EchoHandler)
    guarded = ModelServer(dependencies=[Depends(nothing)]).add("echo", EchoHandler)
    wrapped = ModelServer(settings=ServerSettings(cors=Cors())).add("echo", EchoHandler)

    answers = [_ask(server, body, content_type) for server in (lean, guarded, wrapped)]

    assert answers[0] == answers[1] == answers[2]


def _ask(server: ModelServer, body: bytes, content_type: str) -> tuple[int, Any, set[str]]:
    headers = {"Content-Type": content_type, "X-Request-Id": "same"}
    with TestClient(server.build()) as client:
        answer = client.post(PREDICT, content=body, headers=headers)
    return answer.status_code, answer.json(), set(answer.headers) - {"vary"}  # of CORS


def test_a_root_path_leads_where_the_full_way_leads() -> None:
    app = ModelServer().add("echo", EchoHandler, version="v2").build()

    with TestClient(app, root_path="/v2") as client:
        answer = client.post("/v2/models/echo/predict", json={"text": "a"})
    lean = ModelServer().add("echo", EchoHandler).build()
    with TestClient(lean, root_path="/v1/models") as client:
        unknown = client.post(PREDICT, json={"text": "a"})

    assert answer.status_code == 200
    assert unknown.status_code == 404
