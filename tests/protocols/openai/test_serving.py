"""What the protocol shares with the models' own routes: lists, ids, log, CORS, limits."""

import json
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.protocols.openai.parrot import Heard, Lengths, Parrot

from mlserve import ConfigurationError, Cors, Limits, ModelHandler, ModelServer, ServerSettings
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.tasks.generation import Generation, GenerationChunk, GenerationRequest, Usage

HELLO: Any = {"model": "parrot", "messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


def make_server(heard: Heard | None = None, **options: Any) -> ModelServer:
    server = ModelServer(**options).use(OpenAIProtocol())
    return server.add("parrot", partial(Parrot, heard or Heard()))


@pytest.mark.slow
def test_the_client_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    model = client.models.retrieve("parrot")

    assert ids == ["parrot", "lengths", "echo"]
    assert (model.id, model.object, model.owned_by) == ("parrot", "model", "mlserve")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_versions_are_named_listed_and_served() -> None:
    first, second = Heard(), Heard()
    server = make_server(first).add("parrot", partial(Parrot, second), version="v2")
    with TestClient(server.build()) as client:
        ids = [model["id"] for model in client.get("/v1/models").json()["data"]]
        of_v2 = [model["id"] for model in client.get("/v2/models").json()["data"]]
        described = client.get("/v1/models/parrot:v2").json()
        named = [client.post(CHAT, json={**HELLO, "model": name}) for name in (*ids, "parrot:v1")]

    assert (ids, of_v2) == (["parrot", "parrot:v2"], ["parrot"])
    assert (described["id"], described["version"]) == ("parrot:v2", "v2")
    assert [answer.json()["model"] for answer in named] == ["parrot", "parrot:v2", "parrot:v1"]
    assert (len(first.requests), len(second.requests)) == (1, 2)


def test_a_bare_name_follows_the_weights_of_its_versions() -> None:
    server = make_server().add("parrot", partial(Parrot, Heard()), version="v2")
    server.route("parrot", {"v1": 0.5, "v2": 0.5})

    with TestClient(server.build()) as client:
        keys = [{"X-Routing-Key": str(number % 20)} for number in range(40)]
        answers = [client.post(CHAT, json=HELLO, headers=key) for key in keys]
        named = client.post(CHAT, json={**HELLO, "model": "parrot:v2"})

    served = [answer.headers["x-model-version"] for answer in answers]
    assert set(served) == {"v1", "v2"}
    assert served[:20] == served[20:]
    assert "x-model-version" not in named.headers


def test_the_request_id_is_the_clients_and_the_log_names_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), TestClient(make_server().build()) as client:
        answer = client.post(CHAT, json=HELLO, headers={"X-Request-Id": "mine"})
        failed = client.post(CHAT, json={**HELLO, "model": "nobody"})

    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "mlserve.access"]
    assert answer.headers["x-request-id"] == "mine"
    assert "infer;dur=" in answer.headers["server-timing"]
    keys = ("request_id", "model", "version", "status", "code")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        ("mine", "parrot", "v1", 200, None),
        (failed.headers["x-request-id"], "-", "-", 404, "model_not_found"),
    ]


def test_browsers_of_allowed_origins_may_ask() -> None:
    settings = ServerSettings(cors=Cors(allow_origins=("https://ui.example",)))
    with TestClient(make_server(settings=settings).build()) as client:
        answer = client.post(CHAT, json=HELLO, headers={"Origin": "https://ui.example"})

    assert answer.headers["access-control-allow-origin"] == "https://ui.example"


def test_bodies_are_as_large_as_their_model_takes() -> None:
    server = ModelServer().use(OpenAIProtocol())
    server.add("parrot", partial(Parrot, Heard()), limits=Limits(max_body_bytes=200))
    server.add("roomy", partial(Parrot, Heard()), limits=Limits(max_body_bytes=2000))
    messages = [{"role": "user", "content": "x" * 300}]
    with TestClient(server.build()) as client:
        statuses = {
            name: client.post(CHAT, json={"model": name, "messages": messages}).status_code
            for name in ("parrot", "roomy")
        }
        huge = client.post(CHAT, json={**HELLO, "user": "x" * 3000})

    assert statuses == {"parrot": 413, "roomy": 200}
    assert huge.status_code == 413
    assert huge.json()["error"]["type"] == "invalid_request_error"


def test_a_large_body_is_read_as_a_small_one_is() -> None:
    heard = Heard()
    parts = [{"type": "text", "text": "x" * 300_000}, {"type": "text", "text": "y" * 300_000}]
    with TestClient(make_server(heard).build()) as client:
        answer = client.post(CHAT, json={**HELLO, "messages": [{"role": "user", "content": parts}]})
        prompts = {"model": "parrot", "prompt": ["z" * 6000] * 100, "stop": "q"}
        texts = client.post("/v1/completions", json=prompts)

    assert answer.status_code == 200
    assert len((heard.requests[0].messages or [])[0].content or "") == 600_001
    assert len(texts.json()["choices"]) == 100


def test_other_methods_and_media_types_are_refused_in_the_same_shape() -> None:
    with TestClient(make_server().build()) as client:
        wrong = client.get(CHAT)
        form = client.post(CHAT, data={"model": "parrot"})

    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert form.status_code == 415
    for answer in (wrong, form):
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_openapi_shows_the_routes_and_their_types() -> None:
    schema = make_server().build().openapi()

    operation = schema["paths"][CHAT]["post"]
    assert {"/v1/completions", "/v1/embeddings"} <= schema["paths"].keys()
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    assert operation["responses"]["200"]["content"].keys() == {
        "application/json",
        "text/event-stream",
    }
    assert "422" not in operation["responses"]


def test_the_protocol_is_installed_below_a_prefix_with_the_models() -> None:
    app = FastAPI()
    make_server().install(app, prefix="/ml")
    with TestClient(app) as client:
        answer = client.post(f"/ml{CHAT}", json=HELLO)
        failed = client.post(f"/ml{CHAT}", json={})

    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    assert failed.json()["error"]["param"] == "model"


def test_a_model_must_answer_as_its_task_does() -> None:
    class Odd(ModelHandler[GenerationRequest, str]):
        def infer(self, inputs: list[GenerationRequest]) -> list[str]:
            return [""] * len(inputs)

    with pytest.raises(ConfigurationError, match="answered with `Generation`"):
        ModelServer().use(OpenAIProtocol()).add("odd", Odd).build()


class Whole(ModelHandler[GenerationRequest, Generation]):
    def infer(self, inputs: list[GenerationRequest]) -> list[Generation]:
        return [Generation(choices=[], usage=Usage()) for _ in inputs]


class Pieces(ModelHandler[GenerationRequest, Generation, GenerationChunk]):
    def stream(self, item: GenerationRequest) -> Iterator[GenerationChunk]:
        yield GenerationChunk(text="a")


def test_a_model_is_asked_only_for_what_it_can() -> None:
    server = ModelServer().use(OpenAIProtocol()).add("whole", Whole)
    server.add("pieces", Pieces, limits=Limits(stream_timeout_s=5))
    with TestClient(server.build()) as client:
        answers = {
            (name, is_stream): client.post(CHAT, json={**HELLO, "model": name, "stream": is_stream})
            for name in ("whole", "pieces")
            for is_stream in (False, True)
        }

    statuses = {key: answer.status_code for key, answer in answers.items()}
    assert statuses == {
        ("whole", False): 200,
        ("whole", True): 400,
        ("pieces", False): 400,
        ("pieces", True): 200,
    }
    refused = [answers["whole", True], answers["pieces", False]]
    assert [answer.json()["error"]["param"] for answer in refused] == ["stream"] * 2


def test_vectors_are_not_streamed() -> None:
    with TestClient(ModelServer().use(OpenAIProtocol()).add("v", Lengths).build()) as client:
        body = {"model": "v", "input": "a", "stream": True}
        answer = client.post("/v1/embeddings", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stream"


def test_only_a_protocol_is_used_and_only_before_the_build() -> None:
    with pytest.raises(ConfigurationError, match="must be a protocol"):
        ModelServer().use(OpenAIProtocol)  # type: ignore[arg-type]  # the class itself
    with pytest.raises(ConfigurationError, match="must be a protocol"):
        ModelServer().use("openai")  # type: ignore[arg-type]  # no protocol
    server = ModelServer()
    server.build()
    with pytest.raises(ConfigurationError, match="built or installed already"):
        server.use(OpenAIProtocol())
    with pytest.raises(ConfigurationError, match="is taken"):
        ModelServer().use(OpenAIProtocol()).use(OpenAIProtocol()).build()
