"""API keys before every route: who gets in, what is said, and what never shows."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import Route
from tests.http.answers import error_of
from tests.http.waiting import until

from mlserve import (
    Call,
    ConfigurationError,
    ModelHandler,
    ModelServer,
    ServerSettings,
    api_keys,
)
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.tasks.generation import Generation, GenerationRequest
from mlserve.testing import EchoHandler, running

KEY = "canary-4711-key-of-a-client"
ADMIN = "canary-4711-key-of-an-admin"
ENTRIES = [f"ci={KEY}", f"ops:admin={ADMIN}"]
PREDICT = "/v1/models/echo/predict"
HELLO = {"text": "hello"}
BEARER = {"Authorization": f"Bearer {KEY}"}
PROBES = {"/health", "/ready"}


class Writer(ModelHandler[GenerationRequest, Generation]):
    def infer(self, inputs: list[GenerationRequest]) -> list[Generation]:
        raise RuntimeError("It is never asked.")


def everything(**options: Any) -> ModelServer:
    server = ModelServer(
        dependencies=[Depends(api_keys(ENTRIES))],
        admin=[Depends(api_keys(ENTRIES, scope="admin"))],
        **options,
    )
    server.add("echo", EchoHandler).add("echo", EchoHandler, version="v2").add("writer", Writer)
    return server.use(OpenAIProtocol())


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(everything().build()) as client:
        yield client


def requests_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Give every route of an application, as one request for each of its methods."""
    for route in app.router.routes:
        assert isinstance(route, Route | APIRoute), f"A route of another kind: {route!r}"
        path = route.path.replace("{name}", "echo").replace("{version}", "v1")
        assert "{" not in path, path
        for method in sorted(route.methods or ()):
            yield method, path


@pytest.mark.parametrize("assets", [None, "/assets"])
def test_every_route_but_the_probes_asks_for_a_key(assets: str | None) -> None:
    app = everything(settings=ServerSettings(swagger_assets_url=assets)).build()
    with TestClient(app, raise_server_exceptions=False) as client:
        walked = list(requests_of(app))
        answers = {
            (method, path): client.request(method, path).status_code for method, path in walked
        }

    open_paths = {path for (_, path), status in answers.items() if status != 401}
    paths = {path for _, path in walked}
    assert open_paths == PROBES
    assert {"/docs", "/openapi.json", "/playground", "/metrics", "/v1/models", "/v2/models"} < paths
    assert {"/v1/models/echo", PREDICT, "/v2/models/echo/stream", "/models/echo/predict"} < paths
    assert {"/v1/chat/completions", "/v1/completions", "/admin/models", "/admin/drain"} < paths


def test_every_route_but_the_probes_asks_for_a_key_where_models_are_installed() -> None:
    app = FastAPI()
    everything().install(app, prefix="/ml")
    with TestClient(app, raise_server_exceptions=False) as client:
        open_paths = {
            path
            for method, path in requests_of(app)
            if path.startswith("/ml") and client.request(method, path).status_code != 401
        }

    assert open_paths == {"/ml/health", "/ml/ready"}


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"Authorization": f"bearer   {KEY} "},
        {"X-API-Key": KEY},
        {"X-API-Key": KEY, "Authorization": "Bearer of-a-proxy-in-between"},
        {"X-API-Key": KEY, "Authorization": "Basic Zm9vOmJhcg=="},
    ],
)
def test_a_good_key_gets_in(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post(PREDICT, json=HELLO, headers=headers)

    assert answer.json() == HELLO


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"Authorization", b"")],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", b"Bearer wrong")],
        [(b"Authorization", KEY.encode())],
        [(b"Authorization", b"Basic " + KEY.encode())],
        [(b"Authorization", b"Bearer " + KEY.encode() + b"x")],
        [(b"Authorization", b"Bearer " + KEY.encode()[:-1])],
        [(b"Authorization", b"Bearer " + KEY.upper().encode())],
        [(b"Authorization", b"Bearer \xff\xfe\x80")],
        [(b"Authorization", "Bearer schlüssel-schlüssel".encode())],
        [(b"X-API-Key", b"")],
        [(b"X-API-Key", b"\xe4" * 20)],
        [(b"X-API-Key", b"a" * 60_000)],
        [(b"X-API-Key", KEY.encode() + b"a" * 60_000)],
        [(b"X-API-Key", b"wrong"), (b"Authorization", b"Bearer " + KEY.encode())],
        [(b"X-API-Key", KEY.encode())] * 2,
        [(b"X-API-Key", b"wrong"), (b"X-API-Key", KEY.encode())],
        [(b"Authorization", b"Bearer " + KEY.encode())] * 50,
    ],
)
def test_anything_else_is_401_with_a_challenge(
    client: TestClient, headers: list[tuple[bytes, bytes]]
) -> None:
    answer = client.post(PREDICT, json=HELLO, headers=httpx2.Headers(headers))

    error_of(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "canary" not in answer.text


def test_a_key_in_the_query_is_no_key(client: TestClient) -> None:
    answer = client.post(f"{PREDICT}?api_key={KEY}&X-API-Key={KEY}", json=HELLO)

    error_of(answer, 401, "unauthorized")


def test_a_key_of_another_scope_is_403(client: TestClient) -> None:
    error = error_of(
        client.post(PREDICT, json=HELLO, headers={"X-API-Key": ADMIN}), 403, "forbidden"
    )

    assert error["message"] == "This API key is not for 'infer'."


def test_openais_routes_refuse_in_openais_shape(client: TestClient) -> None:
    path, keys = "/v1/chat/completions", {"X-API-Key": ADMIN}

    missing = client.post(path, json={})
    wrong = client.post(path, json={}, headers=keys)

    assert (missing.status_code, wrong.status_code) == (401, 403)
    assert missing.json()["error"]["type"] == "authentication_error"
    assert wrong.json()["error"]["type"] == "permission_error"
    assert missing.headers["www-authenticate"] == "Bearer"


def test_the_schemes_stand_in_openapi_and_no_key_does() -> None:
    app = everything().build()

    document = app.openapi()

    assert document["components"]["securitySchemes"] == {
        "HTTPBearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key as `Authorization: Bearer …`.",
        },
        "APIKeyHeader": {
            "type": "apiKey",
            "in": "header",
            "name": "X-API-Key",
            "description": "An API key in a header of its own.",
        },
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            asks = {"HTTPBearer": []} in operation.get("security", ())
            assert asks == (path not in PROBES), path
            assert asks == ({"401", "403"} <= operation["responses"].keys()), path
            assert "429" not in operation["responses"]
    refusal = document["paths"][PREDICT]["post"]["responses"]["401"]
    schema = refusal["content"]["application/json"]["schema"]
    assert refusal["description"] == "The API key is missing or wrong."
    assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    assert "canary" not in str(document)


class Annotating(ModelHandler[str, str]):
    def infer(self, inputs: list[str], calls: list[Call]) -> list[str]:
        if "fail" in inputs:
            raise RuntimeError("It fails.")
        return [str(dict(call.headers)) for call in calls]


def test_no_key_gets_into_logs_answers_or_representations(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = api_keys(ENTRIES)
    server = ModelServer(dependencies=[Depends(keys)]).add("m", Annotating)
    texts = [repr(keys), str(keys), repr(server), repr(vars(keys))]

    with running(server) as client:
        for headers in (BEARER, {"X-API-Key": f"{KEY}-wrong"}, {"X-API-Key": ADMIN}):
            for body in ("hello", "fail", {"not": "text"}):
                answer = client.post("/v1/models/m/predict", json=body, headers=headers)
                texts += [answer.text, str(answer.headers)]
        texts += [client.get(f"/{name}", headers=BEARER).text for name in ("metrics", "ready")]

    texts += [f"{vars(record)}" for record in caplog.records] + [caplog.text]
    assert caplog.records
    assert [text for text in texts if "canary" in text] == []


def test_the_name_of_the_key_is_given_to_endpoints_and_listeners() -> None:
    keys = api_keys(ENTRIES)
    server = ModelServer(dependencies=[Depends(keys)]).add("echo", EchoHandler)
    told: list[str | None] = []

    class Listener:
        keeps_payloads = False

        def note(self, ended: Any) -> None:
            told.append(ended.key)

    server.model_for("echo").engine.listeners.add(Listener())
    app = server.build()

    @app.get("/me")
    async def me(name: Annotated[str, Depends(keys)]) -> str:
        return name

    with TestClient(app) as client:
        mine = client.get("/me", headers=BEARER)
        refused = client.get("/me")
        client.post(PREDICT, json=HELLO, headers=BEARER)

    assert mine.json() == "ci"
    error_of(refused, 401, "unauthorized")
    assert told == ["ci"]


def test_a_model_may_ask_for_keys_of_its_own() -> None:
    server = ModelServer().add("free", EchoHandler)
    server.add("echo", EchoHandler, dependencies=[Depends(api_keys(ENTRIES, scope="admin"))])

    with TestClient(server.build()) as client:
        free = client.post("/v1/models/free/predict", json=HELLO)
        refused = client.post(PREDICT, json=HELLO, headers=BEARER)
        admitted = client.post(PREDICT, json=HELLO, headers={"X-API-Key": ADMIN})

    assert (free.status_code, admitted.status_code) == (200, 200)
    error_of(refused, 403, "forbidden")


def test_pages_for_browsers_are_open_where_only_the_models_ask_and_say_how_to_give_a_key() -> None:
    server = ModelServer().add("echo", EchoHandler, dependencies=[Depends(api_keys(ENTRIES))])

    with TestClient(server.build()) as client:
        pages = [client.get(path) for path in ("/docs", "/playground", "/openapi.json")]
        refused = client.post(PREDICT, json=HELLO)

    assert [page.status_code for page in pages] == [200, 200, 200]
    assert "Authorization header" in pages[1].text
    operation = pages[2].json()["paths"][PREDICT]["post"]
    assert operation["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    error_of(refused, 401, "unauthorized")


def test_a_route_of_an_application_that_is_not_ours_may_ask_for_keys() -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(api_keys(ENTRIES))])
    async def hello(request: Request) -> str:
        return "hello"

    with TestClient(app) as client:
        refused, admitted = client.get("/"), client.get("/", headers=BEARER)

    assert (refused.status_code, admitted.json()) == (401, "hello")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json().keys() == {"detail"}


def test_keys_are_exchanged_in_their_file_while_the_server_runs(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"old={KEY}\n")
    server = ModelServer(dependencies=[Depends(api_keys(path))]).add("echo", EchoHandler)

    with TestClient(server.build()) as client:

        def status(key: str) -> int:
            return client.post(PREDICT, json=HELLO, headers={"X-API-Key": key}).status_code

        before = [status(KEY), status("another-key-of-the-client")]
        path.write_text(f"old={KEY}\nnew=another-key-of-the-client\n")
        until(lambda: status("another-key-of-the-client") == 200)
        both = status(KEY)
        path.write_text("new=another-key-of-the-client\n")
        until(lambda: status(KEY) == 401)
        after = status("another-key-of-the-client")

    assert (before, both, after) == ([200, 401], 200, 200)


@pytest.mark.parametrize(
    ("source", "scope", "reason"),
    [
        ([], "infer", "no API key"),
        (["short"], "infer", "shorter than 16"),
        ([KEY], "admin", "No API key has the scope 'admin'"),
        ([f"ops:admin={ADMIN}"], "infer", "No API key has the scope 'infer'"),
        ([KEY], "root", "`scope` must be one of infer, admin"),
        ("/nowhere/keys.txt", "infer", "cannot be read"),
        (None, "infer", "Set `MLSERVE_API_KEYS`"),
    ],
)
def test_keys_that_let_nobody_in_are_refused_when_the_server_is_made(
    source: Any, scope: Any, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        api_keys(source, scope=scope)

    assert "canary" not in str(caught.value)


def test_the_settings_leave_the_keys_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLSERVE_API_KEYS", KEY)

    settings = ServerSettings()

    assert "canary" not in f"{settings!r} {settings.model_dump()}"
    with pytest.raises(ConfigurationError, match="Unknown settings: api_keys"):
        ServerSettings(api_keys=KEY)  # type: ignore[call-arg]  # that is what is tested
