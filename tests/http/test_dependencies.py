"""Users' FastAPI dependencies on the models' routes."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import pytest
from fastapi import Depends, Header, HTTPException, Request, Security
from fastapi.security import HTTPBearer
from fastapi.testclient import TestClient
from tests.http.answers import error_of

from mlserve import ConfigurationError, ModelError, ModelHandler, ModelServer, ServerSettings
from mlserve.testing import EchoHandler

PREDICT = "/v1/models/echo/predict"
HELLO = {"text": "hello"}


def require_key(key: Annotated[str | None, Header(alias="X-Key")] = None) -> None:
    if key is None:
        raise HTTPException(401, "Send a key.", headers={"WWW-Authenticate": "Key"})
    if key != "good":
        raise HTTPException(403, "This key may not.")


def guarded() -> ModelServer:
    return ModelServer(dependencies=[Depends(require_key)]).add("echo", EchoHandler)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [({}, 401, "unauthorized"), ({"X-Key": "bad"}, 403, "forbidden")],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", PREDICT),
        ("POST", "/models/echo/predict"),
        ("POST", "/v1/models/echo/stream"),
        ("GET", "/v1/models/echo/stream?text=a"),
        ("POST", "/v1/models/unknown/predict"),
        ("GET", "/v1/models/echo/predict"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/echo"),
        ("GET", "/playground"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ],
)
def test_the_servers_dependencies_guard_every_route_but_the_probes(
    method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    with TestClient(guarded().build()) as client:
        error_of(client.request(method, path, headers=headers), status, code)


def test_the_probes_need_no_key() -> None:
    with TestClient(guarded().build()) as client:
        statuses = [client.get(path).status_code for path in ("/health", "/ready")]

    assert statuses == [200, 200]


def test_a_request_that_passes_the_dependencies_is_answered() -> None:
    with TestClient(guarded().build()) as client:
        answer = client.post(PREDICT, json=HELLO, headers={"X-Key": "good"})

    assert answer.json() == HELLO


def test_an_unauthorized_answer_keeps_its_challenge_and_has_one_where_it_names_none() -> None:
    def refuse() -> None:
        raise HTTPException(401)

    app = guarded().build()
    bare = ModelServer(dependencies=[Depends(refuse)]).add("echo", EchoHandler).build()
    with TestClient(app) as client, TestClient(bare) as bare_client:
        own = client.post(PREDICT, json=HELLO)
        ours = bare_client.post(PREDICT, json=HELLO)

    assert own.headers["www-authenticate"] == "Key"
    assert ours.headers["www-authenticate"] == "Bearer"


def test_dependencies_run_before_the_body_is_read() -> None:
    n_sent = 0

    def body() -> Iterator[bytes]:
        nonlocal n_sent
        for _ in range(10):
            n_sent += 1
            yield b"x"

    with TestClient(guarded().build()) as client:
        wrong = client.post(PREDICT, content=b"not json")
        large = client.post(PREDICT, content=body(), headers={"Content-Length": "1" * 12})

    error_of(wrong, 401, "unauthorized")
    error_of(large, 401, "unauthorized")


def test_a_models_dependencies_guard_its_own_routes_only() -> None:
    server = ModelServer()
    server.add("echo", EchoHandler, dependencies=[Depends(require_key)]).add("free", EchoHandler)

    with TestClient(server.build()) as client:
        guarded_answer = client.post(PREDICT, json=HELLO)
        free = client.post("/v1/models/free/predict", json=HELLO)

    error_of(guarded_answer, 401, "unauthorized")
    assert free.status_code == 200


def test_the_servers_dependencies_run_before_the_models() -> None:
    order: list[str] = []
    server = ModelServer(dependencies=[Depends(lambda: order.append("server"))])
    server.add("echo", EchoHandler, dependencies=[Depends(lambda: order.append("model"))])

    with TestClient(server.build()) as client:
        client.post(PREDICT, json=HELLO)

    assert order == ["server", "model"]


def test_a_dependency_may_read_the_request_and_leave_something_for_later() -> None:
    seen: list[str] = []

    async def note(request: Request) -> None:
        seen.append(request.url.path)

    with TestClient(
        ModelServer(dependencies=[Depends(note)]).add("echo", EchoHandler).build()
    ) as client:
        client.post(PREDICT, json=HELLO)

    assert seen == [PREDICT]


def test_a_wrong_parameter_of_a_dependency_is_a_validation_error_without_its_value() -> None:
    def page(page: int) -> None:
        """Takes a query parameter."""

    server = ModelServer().add("echo", EchoHandler, dependencies=[Depends(page)])
    with TestClient(server.build()) as client:
        answer = client.post(PREDICT, json=HELLO, params={"page": "canary"})

    error_of(answer, 422, "validation_error")
    assert answer.json()["detail"][0]["loc"] == ["query", "page"]
    assert "canary" not in answer.text


@pytest.mark.parametrize("path", ["predict", "stream"])
def test_a_yielded_dependency_sees_the_handlers_exception(path: str) -> None:
    seen: list[str] = []

    def session() -> Iterator[None]:
        try:
            yield
        except ModelError as exc:
            seen.append(type(exc).__name__)
            raise
        finally:
            seen.append("closed")

    class Broken(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            raise RuntimeError

        def stream(self, item: str) -> Iterator[str]:
            raise RuntimeError
            yield item

    server = ModelServer().add("m", Broken, dependencies=[Depends(session)])
    with TestClient(server.build()) as client:
        answer = client.post(f"/v1/models/m/{path}", json="")

    error_of(answer, 500, "model_error")
    assert seen == ["ModelError", "closed"]


def test_a_yielded_dependency_is_closed_after_a_good_answer() -> None:
    seen: list[str] = []

    async def session() -> AsyncIterator[None]:
        seen.append("opened")
        yield
        seen.append("closed")

    server = ModelServer().add("echo", EchoHandler, dependencies=[Depends(session)])
    with TestClient(server.build()) as client:
        answer = client.post(PREDICT, json=HELLO)

    assert answer.status_code == 200
    assert seen == ["opened", "closed"]


def test_dependencies_can_be_overridden_in_tests_as_ever() -> None:
    app = guarded().build()
    app.dependency_overrides[require_key] = lambda: None

    with TestClient(app) as client:
        answer = client.post(PREDICT, json=HELLO)

    assert answer.status_code == 200


def test_an_exception_of_a_dependency_is_an_internal_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise RuntimeError("/srv/secret")

    server = ModelServer().add("echo", EchoHandler, dependencies=[Depends(broken)])
    with TestClient(server.build()) as client:
        answer = client.post(PREDICT, json=HELLO)

    error_of(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_security_schemes_of_dependencies_stand_in_openapi() -> None:
    server = ModelServer(dependencies=[Security(HTTPBearer())]).add("echo", EchoHandler)

    schema = server.build().openapi()

    assert schema["paths"][PREDICT]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in schema["paths"]["/health"]["get"]


def test_what_is_no_dependency_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"must hold `Depends\(…\)` objects"):
        ModelServer(dependencies=[require_key])
    with pytest.raises(ConfigurationError, match=r"must hold `Depends\(…\)` objects"):
        ModelServer().add("echo", EchoHandler, dependencies=[require_key])


@pytest.mark.parametrize("assets", [None, "/assets"])
def test_the_docs_are_there_for_who_has_the_key(assets: str | None) -> None:
    server = ModelServer(
        title="Numbers",
        settings=ServerSettings(swagger_assets_url=assets),
        dependencies=[Depends(require_key)],
    )
    app = server.add("echo", EchoHandler).build()
    key = {"X-Key": "good"}

    with TestClient(app) as client:
        refused = client.get("/docs")
        page = client.get("/docs", headers=key)
        schema = client.get("/openapi.json", headers=key)

    error_of(refused, 401, "unauthorized")
    assert "<title>Numbers" in page.text
    assert schema.json() == app.openapi()
    assert not {"/docs", "/openapi.json"} & app.openapi()["paths"].keys()
