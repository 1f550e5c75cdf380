"""The lists of models."""

from fastapi.testclient import TestClient
from tests.http.answers import error_of

from mlserve import ModelServer
from mlserve.testing import EchoHandler


def two_versions() -> ModelServer:
    server = ModelServer().add("echo", EchoHandler, version="v1")
    server.add("echo", EchoHandler, version="v2", path="/say")
    return server.add("other", EchoHandler)


def test_each_version_lists_its_models_in_the_shape_of_openai() -> None:
    with TestClient(two_versions().build()) as client:
        first, second = client.get("/v1/models").json(), client.get("/v2/models").json()

    assert first["object"] == "list"
    assert [model["id"] for model in first["data"]] == ["echo", "other"]
    assert [model["id"] for model in second["data"]] == ["echo"]
    model = second["data"][0]
    assert (model["object"], model["owned_by"]) == ("model", "mlserve")
    assert isinstance(model["created"], int)
    assert model["versions"] == ["v1", "v2"]


def test_a_model_tells_its_state_routes_schema_example_and_statistics() -> None:
    with TestClient(two_versions().build()) as client:
        client.post("/v2/say", json={"text": "a"})
        model = client.get("/v2/models/echo").json()

    assert (model["version"], model["state"]) == ("v2", "ready")
    assert model["routes"] == {"predict": "/v2/say", "stream": "/v2/models/echo/stream"}
    assert model["request_schema"]["properties"].keys() == {"text"}
    assert model["example"] == {"text": "hello world"}
    assert model["statistics"]["requests"] == 1
    assert model["statistics"]["in_flight"] == 0


def test_the_routes_that_a_model_names_answer() -> None:
    with TestClient(two_versions().build()) as client:
        models = client.get("/v1/models").json()["data"] + client.get("/v2/models").json()["data"]
        statuses = [
            client.post(path, json=model["example"]).status_code
            for model in models
            for path in model["routes"].values()
        ]

    assert statuses == [200] * 6


def test_a_model_that_is_not_there_is_not_found() -> None:
    with TestClient(two_versions().build()) as client:
        error_of(client.get("/v2/models/other"), 404, "model_not_found")
        error_of(client.get("/v1/models/unknown"), 404, "model_not_found")


def test_a_server_without_models_has_an_empty_list() -> None:
    with TestClient(ModelServer().build()) as client:
        assert client.get("/v1/models").json()["data"] == []
