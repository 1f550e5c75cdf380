"""Requests that name what is not there, or ask for it in the wrong way."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from tests.http.answers import error_of

from mlserve import ModelHandler, ModelServer
from mlserve.testing import EchoHandler


class Silent(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    server = (
        ModelServer()
        .add("echo", EchoHandler)
        .add("silent", Silent, version="v2")
        .add("named", Silent, path="/names/find")
    )
    with TestClient(server.build()) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/models/unknown/predict", "model_not_found"),
        ("/v1/models/unknown/stream", "model_not_found"),
        ("/v2/models/echo/predict", "model_not_found"),
        ("/v1/models/silent/predict", "model_not_found"),
        ("/models/unknown/predict", "model_not_found"),
        ("/v3/models/echo/predict", "model_not_found"),
        ("/v9/models/unknown/stream", "model_not_found"),
        ("/v2/models/silent/stream", "not_found"),
        ("/models/silent/stream", "not_found"),
        ("/v1/models/echo/train", "not_found"),
        ("/v1/models/named/predict", "not_found"),
        ("/v1/models/echo/predict/more", "not_found"),
        ("/predict", "not_found"),
        ("/", "not_found"),
        ("/v0/models/echo/predict", "not_found"),
    ],
)
def test_what_is_not_there_is_not_found(client: TestClient, path: str, code: str) -> None:
    error_of(client.post(path, json={"text": ""}), 404, code)


TRAVERSALS = [
    "..",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cwindows",
    "%00",
    "echo%00",
    "C:%5C",
    "%EF%BC%8E%EF%BC%8E",
    "~root",
    "echo%20",
    "%20echo",
    "ECHO",
    "%FF",
    "a" * 5000,
    "{name}",
    "<script>alert(1)</script>",
]


@pytest.mark.parametrize("name", TRAVERSALS)
@pytest.mark.parametrize("path", ["/v1/models/{}/predict", "/v1/models/{}", "/models/{}/stream"])
def test_names_that_try_to_be_paths_are_not_found(client: TestClient, path: str, name: str) -> None:
    method = "GET" if path.endswith("}") else "POST"

    answer = client.request(method, path.replace("{}", name))

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("model_not_found", "not_found")
    assert len(answer.content) <= 4096
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/models/echo/predict", {"POST"}),
        ("PUT", "/v1/models/echo/predict", {"POST"}),
        ("DELETE", "/v1/models/echo/predict", {"POST"}),
        ("OPTIONS", "/v1/models/echo/predict", {"POST"}),
        ("TRACE", "/v1/models/echo/predict", {"POST"}),
        ("GET", "/models/echo/predict", {"POST"}),
        ("DELETE", "/v1/models/echo/stream", {"GET", "POST"}),
        ("PATCH", "/models/echo/stream", {"GET", "POST"}),
        ("GET", "/v1/names/find", {"POST"}),
        ("POST", "/health", {"GET"}),
        ("DELETE", "/ready", {"GET"}),
        ("POST", "/v1/models", {"GET"}),
        ("PUT", "/v1/models/echo", {"GET"}),
    ],
)
def test_a_wrong_method_is_answered_with_the_right_ones(
    client: TestClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = client.request(method, path)

    error_of(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == allowed


def test_a_wrong_method_on_an_unknown_path_is_not_found(client: TestClient) -> None:
    error_of(client.delete("/nowhere"), 404, "not_found")


def test_a_model_that_does_not_stream_says_nothing_of_streams(client: TestClient) -> None:
    error_of(client.get("/v2/models/silent/stream"), 404, "not_found")


def test_a_head_request_of_a_wrong_route_has_no_body(client: TestClient) -> None:
    answer = client.head("/v1/models/echo/predict")

    assert answer.status_code == 405


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_may_be_asked_with_head(client: TestClient, path: str) -> None:
    answer = client.head(path)

    assert answer.status_code == 200
    assert "x-request-id" in answer.headers


def test_users_may_add_routes_below_a_model_name() -> None:
    app = ModelServer().add("echo", EchoHandler).build()

    @app.get("/v1/models/{name}/card")
    async def card(name: str) -> str:
        return f"All about {name}."

    with TestClient(app) as client:
        answer = client.get("/v1/models/echo/card")

    assert answer.json() == "All about echo."
