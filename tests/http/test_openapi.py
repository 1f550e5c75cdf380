"""What `/openapi.json`, `/docs` and `/playground` show."""

from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field

from mlserve import Binary, ModelHandler, ModelServer, ServerSettings, Upload

ERRORS = {"400", "404", "408", "413", "415", "422", "500", "502", "503", "504", "507"}


class Tone(Enum):
    KIND = "kind"
    RUDE = "rude"


class Ask(BaseModel):
    """A question."""

    text: str = Field(max_length=100)
    n: int | None = None
    tone: Tone = Tone.KIND


class Reply(BaseModel):
    reply: str


class Token(BaseModel):
    token: str


class Nested(BaseModel):
    asks: list[Ask]


class Talker(ModelHandler[Ask, Reply, Token]):
    def examples(self) -> list[Ask]:
        return [Ask(text="hello"), Ask(text="bye", n=2)]

    def infer(self, inputs: list[Ask]) -> list[Reply]:
        return [Reply(reply=ask.text) for ask in inputs]

    def stream(self, item: Ask) -> Iterator[Token]:
        yield Token(token=item.text)


class Listener(ModelHandler[Nested, Binary]):
    def infer(self, inputs: list[Nested]) -> list[Binary]:
        return [Binary(b"") for _ in inputs]

    def stream(self, item: Nested) -> Iterator[Binary]:
        yield Binary(b"")


class Photo(BaseModel):
    image: Upload
    n: int = 1


class Viewer(ModelHandler[Photo, str]):
    def infer(self, inputs: list[Photo]) -> list[str]:
        return ["" for _ in inputs]


@pytest.fixture(scope="module")
def schema() -> Any:
    server = ModelServer(title="Talk", version="1.2.3", description="All of it.")
    server.add("talk", Talker).add("listen", Listener).add("view", Viewer, version="v2")
    with TestClient(server.build()) as client:
        return client.get("/openapi.json").json()


def operations(schema: Any) -> list[tuple[str, str, Any]]:
    return [
        (path, method, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        if path.endswith(("/predict", "/stream"))
    ]


def resolved(schema: Any, node: Any) -> Any:
    while "$ref" in node:
        node = schema["components"]["schemas"][node["$ref"].rpartition("/")[2]]
    return node


def test_the_document_is_valid_openapi(schema: Any) -> None:
    document = OpenAPI.model_validate(schema)

    assert document.info.title == "Talk"
    assert (document.info.version, document.info.description) == ("1.2.3", "All of it.")


def test_every_reference_leads_somewhere(schema: Any) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert set(references(schema)) <= known


def test_each_model_route_documents_every_error_with_one_body(schema: Any) -> None:
    assert len(operations(schema)) == 12
    for path, method, operation in operations(schema):
        assert operation["responses"].keys() == ERRORS | {"200"}, (path, method)
        for status in ERRORS:
            content = operation["responses"][status]["content"]["application/json"]
            body = resolved(schema, content["schema"])
            assert body["title"] == "ErrorBody", (path, method, status)
            assert resolved(schema, body["properties"]["error"])["title"] == "ErrorInfo"


def test_operation_ids_are_unique(schema: Any) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(schema)]

    assert len(ids) == len(set(ids))


def test_request_and_response_schemas_are_shown(schema: Any) -> None:
    operation = schema["paths"]["/v1/models/talk/predict"]["post"]

    body = operation["requestBody"]
    assert body["required"] is True
    request = resolved(schema, body["content"]["application/json"]["schema"])
    assert request["properties"]["text"]["maxLength"] == 100
    answer = resolved(
        schema, operation["responses"]["200"]["content"]["application/json"]["schema"]
    )
    assert answer["properties"].keys() == {"reply"}


def test_examples_are_shown(schema: Any) -> None:
    operation = schema["paths"]["/v1/models/talk/predict"]["post"]

    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert [example["value"]["text"] for example in examples.values()] == ["hello", "bye"]


def test_chunks_are_shown_as_events(schema: Any) -> None:
    for method in ("get", "post"):
        content = schema["paths"]["/v1/models/talk/stream"][method]["responses"]["200"]["content"]
        assert list(content) == ["text/event-stream"], method
        assert resolved(schema, content["text/event-stream"]["schema"])["title"] == "Token"


def test_the_get_twin_shows_the_fields_as_query_parameters(schema: Any) -> None:
    operation = schema["paths"]["/v1/models/talk/stream"]["get"]

    parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert {name: p["in"] for name, p in parameters.items()} == dict.fromkeys(
        ("text", "n", "tone"), "query"
    )
    assert parameters["text"]["required"] is True
    assert parameters["n"].get("required", False) is False


def test_there_is_no_get_twin_where_a_field_is_no_scalar(schema: Any) -> None:
    assert "get" not in schema["paths"]["/v1/models/listen/stream"]


def test_files_are_shown_as_a_form(schema: Any) -> None:
    content = schema["paths"]["/v2/models/view/predict"]["post"]["requestBody"]["content"]

    assert list(content) == ["multipart/form-data"]
    fields = resolved(schema, content["multipart/form-data"]["schema"])["properties"]
    assert fields["image"]["format"] == "binary"


def test_the_probes_show_their_bodies(schema: Any) -> None:
    ready = schema["paths"]["/ready"]["get"]["responses"]

    assert ready["503"]["content"]["application/json"]["schema"]["$ref"].endswith("/ReadyBody")


def test_docs_and_playground_are_served() -> None:
    app = ModelServer(title="<Talk>").add("talk", Talker).build()

    with TestClient(app) as client:
        docs, playground = client.get("/docs"), client.get("/playground")

    assert docs.status_code == playground.status_code == 200
    assert "&lt;Talk&gt;" in playground.text
    assert "<Talk>" not in playground.text
    assert "//cdn" not in playground.text


def test_swagger_can_be_served_from_elsewhere() -> None:
    settings = ServerSettings(swagger_assets_url="https://assets.example/swagger/")
    app = ModelServer(settings=settings).add("talk", Talker).build()

    with TestClient(app) as client:
        docs = client.get("/docs").text

    assert "https://assets.example/swagger/swagger-ui-bundle.js" in docs
    assert "cdn.jsdelivr" not in docs


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/playground", "/redoc"])
def test_nothing_is_shown_where_docs_are_not_exposed(path: str) -> None:
    settings = ServerSettings(expose_docs=False, swagger_assets_url="https://assets.example")
    app = ModelServer(settings=settings).add("talk", Talker).build()

    with TestClient(app) as client:
        shown = client.get(path)
        answer = client.post("/v1/models/talk/predict", json={"text": "a"})

    assert shown.status_code == 404
    assert answer.status_code == 200


def test_broken_examples_break_neither_the_server_nor_its_documents() -> None:
    class Forgetful(ModelHandler[str, str]):
        def examples(self) -> list[str]:
            return [self.words[0]]  # type: ignore[attr-defined]  # made by `load` only

        def warmup(self) -> None:
            """Needs no examples."""

        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    with TestClient(ModelServer().add("m", Forgetful).build()) as client:
        shown = client.get("/openapi.json").json()

    content = shown["paths"]["/v1/models/m/predict"]["post"]["requestBody"]["content"]
    assert "examples" not in content["application/json"]
