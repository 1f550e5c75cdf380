"""Errors as the real client meets them, and how often it tries."""

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import httpx2
import openai
import pytest
from fastapi import Depends, HTTPException
from fastapi.testclient import TestClient
from tests.protocols.openai.parrot import Heard, Parrot

from mlserve import ModelHandler, ModelServer, QueueFullError
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.tasks.generation import Generation, GenerationChunk, GenerationRequest
from mlserve.testing import running

pytestmark = pytest.mark.slow


class Counted:
    """A client that counts what it sends."""

    def __init__(self, url: str) -> None:
        self.n_sent = 0
        http = httpx2.Client(event_hooks={"request": [self._count]})
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", http_client=http)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()

    def _count(self, request: httpx2.Request) -> None:
        self.n_sent += 1

    def chat(self, text: str = "hello", **options: Any) -> Any:
        messages: list[Any] = [{"role": "user", "content": text}]
        asked: dict[str, Any] = {"model": "parrot", "messages": messages, **options}
        return self.client.chat.completions.create(**asked)


@pytest.fixture
def counted(url: str) -> Iterator[Counted]:
    with Counted(url) as counted:
        yield counted


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("text", "status", "code", "kind"),
    [
        ("refuse", 400, "invalid_input", "invalid_request_error"),
        ("break", 500, "model_error", "server_error"),
        ("burst", 507, "out_of_memory", "server_error"),
    ],
)
def test_what_fails_again_is_sent_once(
    counted: Counted, text: str, status: int, code: str, kind: str, is_stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        counted.chat(text, stream=is_stream)

    error = caught.value
    assert (error.status_code, error.code, error.type) == (status, code, kind)
    assert error.request_id
    assert error.response.headers["x-should-retry"] == "false"
    assert "secret" not in str(error)
    assert counted.n_sent == 1


def test_an_unknown_model_is_not_found(counted: Counted) -> None:
    for name in ("nobody", "parrot:v7"):
        with pytest.raises(openai.NotFoundError) as caught:
            counted.chat(model=name)

        assert (caught.value.code, caught.value.type) == (
            "model_not_found",
            "invalid_request_error",
        )


def test_a_model_of_another_kind_is_refused_in_words(counted: Counted) -> None:
    for name in ("echo", "lengths"):
        with pytest.raises(openai.BadRequestError, match="not one that generates text") as caught:
            counted.chat(model=name)

        assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"messages": []}, "messages", "validation_error"),
        ({"temperature": "hot"}, "temperature", "validation_error"),
        ({"temperature": -1}, "temperature", "validation_error"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "validation_error"),
        ({"max_tokens": 0}, "max_tokens", "validation_error"),
        ({"stop": ["a", ""]}, "stop.1", "validation_error"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_input"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_input"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", "unsupported_parameter"),
        ({"extra_body": {"temprature": 1}}, "temprature", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": "a", "audio": {"id": "x"}}]},
            "messages.0.audio",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
            "validation_error",
        ),
    ],
)
def test_the_parameter_that_is_wrong_is_named(
    counted: Counted, options: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        counted.chat(**options)

    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert counted.n_sent == 1


def test_images_are_refused_in_words(counted: Counted) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(openai.BadRequestError, match="no images, audio or files"):
        counted.chat(messages=[{"role": "user", "content": [image]}])


def test_what_is_no_json_has_the_shape_too(url: str) -> None:
    answer = httpx2.post(
        f"{url}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["x-should-retry"] == "false"


def test_an_error_amid_a_stream_is_raised_and_ends_it(counted: Counted, url: str) -> None:
    texts: list[str | None] = []
    stream = counted.chat("one two stumble", stream=True)
    with pytest.raises(openai.APIError, match="memory"):
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    messages = [{"role": "user", "content": "one stumble"}]
    body = {"model": "parrot", "messages": messages, "stream": True}
    sent = httpx2.post(f"{url}/v1/chat/completions", json=body)

    assert texts == ["", "one ", "two "]
    *_, event, end = sent.text.removesuffix("\n\n").split("\n\n")
    error = json.loads(event.removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "out_of_memory")
    assert error["request_id"] == sent.headers["x-request-id"]
    assert end == "data: [DONE]"


def test_what_came_before_a_chunk_that_cannot_be_written_is_sent() -> None:
    class Unwritable(ModelHandler[GenerationRequest, Generation, GenerationChunk]):
        async def stream(self, item: GenerationRequest) -> AsyncIterator[GenerationChunk]:
            for text in ("one ", "two ", "\ud800"):  # all are there before the first is read
                yield GenerationChunk(text=text)

    app = ModelServer().use(OpenAIProtocol()).add("m", Unwritable).build()
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": True}
    with TestClient(app) as client:
        *events, error, end = client.post("/v1/chat/completions", json=body).text.split("\n\n")[:-1]

    assert [word for event in events for word in ("one", "two") if word in event] == ["one", "two"]
    assert "cannot be written" in error
    assert end == "data: [DONE]"


def test_requests_that_find_no_room_are_sent_again(server: ModelServer) -> None:
    app = server.build()
    with running(app, wait_ready=True) as http:
        engine = server.model_for("parrot").engine
        real, tries = engine.require_room, []

        def crowded(budget_s: float, priority: int, tenant: str | None = None) -> None:
            tries.append(budget_s)
            if len(tries) == 1:
                raise QueueFullError("parrot", 1, 0.01)
            real(budget_s, priority, tenant)

        engine.require_room = crowded  # type: ignore[method-assign]  # its own queue is never full
        with Counted(str(http.base_url)) as counted:
            answer = counted.chat()

    assert answer.choices[0].message.content == "hello"
    assert counted.n_sent == 2


def guard(status: int) -> Callable[[], None]:
    def check() -> None:
        raise HTTPException(status, "No.")

    return check


@pytest.mark.parametrize("is_own", [False, True], ids=["the server's", "the model's own"])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (429, openai.RateLimitError),
    ],
)
def test_dependencies_guard_the_protocol(
    status: int, expected: type[openai.APIStatusError], is_own: bool
) -> None:
    heard = Heard()
    guards = [Depends(guard(status))]
    server = ModelServer(dependencies=() if is_own else guards).use(OpenAIProtocol())
    server.add("parrot", partial(Parrot, heard), dependencies=guards if is_own else ())
    server.add("open", partial(Parrot, heard))
    with running(server) as http, Counted(str(http.base_url)) as counted:
        counted.client.max_retries = 0
        with pytest.raises(expected) as caught:
            counted.chat()
        answers = [counted.chat(model="open")] if is_own else []

    assert caught.value.status_code == status
    assert caught.value.request_id
    assert len(heard.requests) == len(answers)


def test_a_model_behind_dependencies_answers_who_passes() -> None:
    heard, passed = Heard(), threading.Event()
    server = ModelServer().use(OpenAIProtocol())
    server.add("parrot", partial(Parrot, heard), dependencies=[Depends(passed.set)])
    with running(server) as http, Counted(str(http.base_url)) as counted:
        whole = counted.chat()
        chunks = list(counted.chat(stream=True))

    assert whole.choices[0].message.content == "hello"
    assert len(chunks) == 3
    assert passed.is_set()
