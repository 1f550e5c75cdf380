"""Keys, prompts and query strings get into no log, no error and no metric, whatever happens."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import Depends
from tests.canaries import KEY, PROMPT, QUERY, Watch, watching
from tests.http.careful import Ask, Careful
from tests.observability.spans import Spans

from mlserve import Limits, ModelServer, Replicas, ServerSettings, api_keys, rate_limit
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.testing import running

pytestmark = pytest.mark.slow

WAYS = [
    "", "refuse", "value error", "preprocess", "cost", "batch_key", "infer", "out of memory",
    "too few", "a string", "an exception", "another type", "at once",
]  # fmt: skip
GOOD = f"{KEY}-that-is-good"
BODIES: list[bytes] = [
    json.dumps({"text": [PROMPT]}).encode(),
    json.dumps({PROMPT: PROMPT}).encode(),
    json.dumps([PROMPT]).encode(),
    json.dumps({"text": PROMPT}).encode()[:-3],
    json.dumps({"text": PROMPT * 10_000}).encode(),
    f'{{"text": "{PROMPT}\\ud800"}}'.encode(),
    f"text={PROMPT}".encode(),
    PROMPT.encode("utf-16"),
    b"",
]
PATHS = [
    "/v1/models/careful/predict",
    "/v1/models/careful/stream",
    "/models/careful/predict",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/models/nobody/predict",
    "/v7/models/careful/predict",
    "/health",
    "/ready",
    "/v1/models",
    "/v1/models/careful",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/playground",
    "/nowhere",
]
HEADERS = {
    "Authorization": f"Bearer {GOOD}",
    "Cookie": f"session={KEY}",
    "X-Secret": KEY,
    "User-Agent": KEY,
    "Referer": f"http://127.0.0.1/?q={QUERY}",
}


class Sent:
    """What was answered."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client
        self.answers: list[httpx2.Response] = []

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        options["headers"] = HEADERS | options.get("headers", {})
        answer = self.client.request(method, f"{path}?key={QUERY}", **options)
        self.answers.append(answer)
        return answer

    def codes(self) -> set[str]:
        failed = [answer.json() for answer in self.answers if answer.is_error]
        return {str(body["error"]["code"]) for body in failed if "error" in body}


@pytest.fixture(params=["thread", "process"])
def sent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    Spans(monkeypatch)
    guards = [Depends(api_keys([GOOD])), Depends(rate_limit("100000/minute"))]
    server = ModelServer(
        dependencies=guards, settings=ServerSettings(forward_headers=("x-secret",))
    ).use(OpenAIProtocol())
    server.add(
        "careful",
        Careful,
        replicas=Replicas(placement=request.param),
        limits=Limits(timeout_s=10, max_body_bytes=100_000, priorities=True),
    )
    with running(server) as client:
        yield Sent(client)


@pytest.fixture
def watch(caplog: pytest.LogCaptureFixture) -> Iterator[Watch]:
    caplog.set_level(logging.DEBUG)
    with watching() as watch:
        yield watch


def test_nothing_that_a_client_sends_is_in_a_log_an_error_or_a_metric(
    watch: Watch, sent: Sent
) -> None:
    for way in WAYS:
        for path in PATHS[:2]:
            sent.ask("POST", path, json=Ask(text=PROMPT, way=way).model_dump())
    sent.ask("POST", PATHS[0], json={"text": ""})
    for path in PATHS:
        for method in ("GET", "POST", "DELETE"):
            sent.ask(method, path, json={"text": PROMPT, "model": "careful", "input": PROMPT})
    for body in BODIES:
        for path in PATHS[:5]:
            sent.ask("POST", path, content=body, headers={"Content-Type": "application/json"})
    for headers in (
        {"Authorization": f"Bearer {KEY}"},
        {"X-API-Key": KEY},
        {"X-Request-Timeout": KEY},
        {"X-Request-Priority": KEY},
        {"X-Request-Id": f"{KEY} is not sane"},
        {"Content-Type": f"text/{KEY}"},
        {"Content-Encoding": KEY},
        {"traceparent": KEY},
    ):
        sent.ask("POST", PATHS[0], json={"text": PROMPT}, headers=headers)

    slow = {"text": PROMPT, "way": "slow"}
    sent.ask("POST", PATHS[0], json=slow, headers={"X-Request-Timeout": "0.05"})

    errors = [answer.text for answer in sent.answers if answer.is_error]
    assert watch.found == []
    assert watch.n_lines > 100
    assert [text for text in errors if "canary" in text] == []
    assert sent.codes() >= {
        "body_too_large", "deadline_exceeded", "invalid_input", "invalid_json", "invalid_timeout",
        "method_not_allowed", "model_error", "model_not_found", "not_found", "out_of_memory",
        "unauthorized", "unsupported_media_type", "validation_error",
    }  # fmt: skip
    assert "canary" not in sent.ask("GET", "/metrics").text


def test_nothing_is_told_of_what_a_replica_died_with(watch: Watch) -> None:
    server = ModelServer().add("careful", Careful, replicas=Replicas(placement="process"))
    with running(server) as client:
        answer = client.post(PATHS[0], json={"text": PROMPT, "way": "exit"})

    assert answer.json()["error"]["code"] in ("model_error", "replica_died")
    assert "canary" not in answer.text
    assert watch.found == []
    assert watch.n_lines > 3
