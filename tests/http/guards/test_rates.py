"""Rate limits and quotas before routes: who is counted, what is said, what a lost store means."""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from tests.http.answers import error_of, events_of

from mlserve import (
    Call,
    ConfigurationError,
    ModelHandler,
    ModelServer,
    ServerSettings,
    api_keys,
    rate_limit,
)
from mlserve.access.stores import MemoryStore, StoreError
from mlserve.access.windows import Rate, Reading
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.tasks.embedding import Embedding, EmbeddingRequest
from mlserve.testing import EchoHandler, FakeClock, running

PREDICT = "/v1/models/echo/predict"
HELLO = {"text": "hello"}
KEYS = ["a=a-good-key-of-the-first", "b=a-good-key-of-the-second"]


def key(name: str) -> dict[str, str]:
    return {"X-API-Key": next(k for k in KEYS if k.startswith(name)).partition("=")[2]}


def limited(rate: str, *before: Any, clock: FakeClock | None = None, **options: Any) -> ModelServer:
    options.setdefault("store", MemoryStore(clock=clock or FakeClock()))
    dependencies = [*before, Depends(rate_limit(rate, **options))]
    return ModelServer(dependencies=dependencies).add("echo", EchoHandler)


def test_what_is_too_much_is_429_until_the_window_has_slid_on() -> None:
    clock = FakeClock()
    with TestClient(limited("2/minute", clock=clock).build()) as client:
        answers = [client.post(PREDICT, json=HELLO) for _ in range(3)]
        clock.advance(61)
        later = client.post(PREDICT, json=HELLO)

    error = error_of(answers[2], 429, "rate_limited")
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert (error["retry_after_s"], error["type"]) == (61, "CapacityError")
    assert answers[2].headers["retry-after"] == "61"
    assert later.status_code == 200


def test_every_answer_says_what_the_limit_is_and_what_is_left() -> None:
    with TestClient(limited("5/minute").build()) as client:
        answers = [
            client.post(PREDICT, json=HELLO),
            client.post(PREDICT, content=b"not json"),
            client.get("/v1/models"),
            client.get("/v1/models/none"),
            client.get("/metrics"),
            client.get("/playground"),
        ]

    assert [answer.status_code for answer in answers] == [200, 415, 200, 404, 200, 429]
    for answer, left in zip(answers, (4, 3, 2, 1, 0, 0), strict=True):
        assert answer.headers.get_list("ratelimit-policy") == ['"5/minute";q=5;w=60']
        assert answer.headers.get_list("ratelimit") == [f'"5/minute";r={left};t=61']


def test_the_probes_are_neither_counted_nor_limited() -> None:
    with TestClient(limited("1/minute").build()) as client:
        statuses = [client.get(path).status_code for path in ("/ready", "/health") * 3]
        answer = client.post(PREDICT, json=HELLO)

    assert statuses == [200] * 6
    assert answer.status_code == 200


def test_two_limits_hold_together_and_both_are_said() -> None:
    second = Depends(rate_limit("10/hour", store=MemoryStore(clock=FakeClock())))
    with TestClient(limited("2/minute", second).build()) as client:
        answer = client.post(PREDICT, json=HELLO)

    assert answer.headers.get_list("ratelimit") == ['"10/hour";r=9;t=3660', '"2/minute";r=1;t=61']


def test_streams_say_it_too() -> None:
    with TestClient(limited("2/minute").build()) as client:
        answer = client.post("/v1/models/echo/stream", json=HELLO)

    assert events_of(answer)[-1] == "[DONE]"
    assert answer.headers["ratelimit"] == '"2/minute";r=1;t=61'


def test_callers_are_told_apart_by_their_keys() -> None:
    app = limited("1/minute", Depends(api_keys(KEYS))).build()
    with TestClient(app) as client:
        statuses = [
            client.post(PREDICT, json=HELLO, headers=key(name)).status_code for name in "aabb"
        ]

    assert statuses == [200, 429, 200, 429]


def test_by_address_counts_one_caller_whatever_its_key() -> None:
    app = limited("1/minute", Depends(api_keys(KEYS)), by="address").build()
    with TestClient(app) as client:
        statuses = [
            client.post(PREDICT, json=HELLO, headers=key(name)).status_code for name in "ab"
        ]

    assert statuses == [200, 429]


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("no address", "another", False),
    ],
)
def test_an_address_without_a_key_is_one_caller_and_of_ipv6_its_network(
    one: str, other: str, are_same: bool
) -> None:
    app = limited("1/minute").build()
    with TestClient(app, client=(one, 1)) as client:
        first = client.post(PREDICT, json=HELLO)
        second = TestClient(app, client=(other, 2)).get("/v1/models")

    assert first.status_code == 200
    assert second.status_code == (429 if are_same else 200)


def test_a_proxy_on_this_machine_is_believed_who_asks() -> None:
    with running(limited("1/minute")) as client:
        statuses = [
            client.post(PREDICT, json=HELLO, headers={"X-Forwarded-For": address}).status_code
            for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2")
        ]

    assert statuses == [200, 429, 200]


def test_callers_are_told_apart_by_a_function_of_yours() -> None:
    app = limited("1/minute", by=lambda request: request.headers.get("x-tenant", "")).build()
    with TestClient(app) as client:
        statuses = [
            client.post(PREDICT, json=HELLO, headers={"X-Tenant": name * 5000}).status_code
            for name in ("a", "a", "b")
        ]

    assert statuses == [200, 429, 200]


def size(request: Request) -> int:
    return int(request.headers["x-size"])


async def size_later(request: Request) -> int:
    await asyncio.sleep(0)
    return size(request)


@pytest.mark.parametrize("cost", [size, size_later])
def test_a_request_costs_what_a_function_says(cost: Any) -> None:
    with TestClient(limited("10/minute", cost=cost).build()) as client:
        answers = [
            client.post(PREDICT, json=HELLO, headers={"X-Size": text})
            for text in ("6", "5", "4", "0", "11")
        ]

    assert [answer.status_code for answer in answers] == [200, 429, 200, 200, 429]
    assert "alone is more" in error_of(answers[4], 429, "rate_limited")["message"]
    assert "retry-after" not in answers[4].headers


def test_a_cost_that_is_none_is_our_failure_and_not_the_clients() -> None:
    with TestClient(limited("10/minute", cost=size).build()) as client:
        for text in ("-1", "x"):
            answer = client.post(PREDICT, json=HELLO, headers={"X-Size": text})

            error_of(answer, 500, "internal_error")


class Counting(ModelHandler[int, int, int]):
    def infer(self, inputs: list[int], calls: list[Call]) -> list[int]:
        for n, call in zip(inputs, calls, strict=True):
            call.annotate(prompt_tokens=1, completion_tokens=n)
            if n == 3:
                raise RuntimeError
        return inputs

    def stream(self, item: int, call: Call) -> Iterator[int]:
        for n in range(item):
            call.annotate(completion_tokens=n + 1)
            yield n


def counting(rate: str, **options: Any) -> ModelServer:
    guard = Depends(rate_limit(rate, cost="tokens", store=MemoryStore(clock=FakeClock())))
    return ModelServer(dependencies=[guard], **options).add("m", Counting)


def test_tokens_are_charged_when_the_request_has_ended() -> None:
    with TestClient(counting("10/minute").build()) as client:
        answers = [client.post("/v1/models/m/predict", json=n) for n in (3, 15, 1)]

    assert [answer.status_code for answer in answers] == [500, 200, 429]
    assert [answer.headers["ratelimit"] for answer in answers] == [
        '"10/minute";r=10;t=0',
        '"10/minute";r=6;t=61',
        '"10/minute";r=0;t=61',
    ]


def test_tokens_of_a_stream_are_charged_when_it_has_ended() -> None:
    with TestClient(counting("5/minute").build()) as client:
        first = client.post("/v1/models/m/stream", json=5)
        second = client.post("/v1/models/m/stream", json=5)

    assert len(events_of(first)) == 6
    error_of(second, 429, "rate_limited")


def test_what_has_no_tokens_costs_none() -> None:
    with TestClient(counting("1/minute").build()) as client:
        statuses = [client.get("/v1/models").status_code for _ in range(3)]
        wrong = client.post("/v1/models/m/predict", json="no number")
        right = client.post("/v1/models/m/predict", json=1)

    assert (statuses, wrong.status_code, right.status_code) == ([200] * 3, 422, 200)


class Embedder(ModelHandler[EmbeddingRequest, Embedding]):
    def infer(self, inputs: list[EmbeddingRequest], calls: list[Call]) -> list[Embedding]:
        for call in calls:
            call.annotate(prompt_tokens=2)
        return [Embedding(embedding=[1.0], tokens=2) for _ in inputs]


def test_all_inputs_of_one_request_are_charged_and_openais_shape_is_kept() -> None:
    guard = Depends(rate_limit("5/minute", cost="tokens", store=MemoryStore(clock=FakeClock())))
    server = ModelServer(dependencies=[guard]).add("e", Embedder).use(OpenAIProtocol())
    with TestClient(server.build()) as client:
        body = {"model": "e", "input": ["a", "b", "c"]}
        first = client.post("/v1/embeddings", json=body)
        second = client.post("/v1/embeddings", json=body)

    assert first.status_code == 200, first.text
    assert second.status_code == 429
    assert second.json()["error"]["type"] == "rate_limit_error"
    assert second.headers["ratelimit"] == '"5/minute";r=0;t=61'


def test_a_models_own_guards_stand_before_openais_route_too() -> None:
    guards = [
        Depends(api_keys(KEYS)),
        Depends(rate_limit("5/minute", cost="tokens", store=MemoryStore(clock=FakeClock()))),
    ]
    server = ModelServer().add("e", Embedder, dependencies=guards).use(OpenAIProtocol())
    with TestClient(server.build()) as client:
        body = {"model": "e", "input": ["a", "b", "c"]}
        answers = [
            client.post("/v1/embeddings", json=body, headers=headers)
            for headers in ({}, key("a"), key("a"), key("b"))
        ]

    assert [answer.status_code for answer in answers] == [401, 200, 429, 200]
    assert [answer.headers.get("ratelimit") for answer in answers] == [
        None,
        '"5/minute";r=5;t=0',
        '"5/minute";r=0;t=61',
        '"5/minute";r=5;t=0',
    ]


def test_a_limit_stands_in_openapi() -> None:
    document = limited("1/minute").build().openapi()

    refusal = document["paths"][PREDICT]["post"]["responses"]["429"]
    assert refusal["description"] == "The caller has reached a rate limit."
    assert "429" not in document["paths"]["/health"]["get"]["responses"]


def test_a_route_of_an_application_that_is_not_ours_may_be_limited() -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(rate_limit("1/hour"))])
    async def hello() -> str:
        return "hello"

    with TestClient(app) as client:
        first, second = client.get("/"), client.get("/")

    assert (first.json(), second.status_code) == ("hello", 429)
    assert first.headers["ratelimit"].startswith('"1/hour";r=0;t=')
    assert int(second.headers["retry-after"]) > 3500
    assert second.headers["ratelimit-policy"] == '"1/hour";q=1;w=3600'


def test_limits_of_one_name_in_one_store_are_one_and_others_are_not() -> None:
    store = MemoryStore(clock=FakeClock())
    app = FastAPI()
    for path, name in (("/a", "one"), ("/b", "one"), ("/c", "other")):
        guard = Depends(rate_limit("1/hour", store=store, name=name))
        app.add_api_route(path, lambda: None, dependencies=[guard])

    with TestClient(app) as client:
        statuses = [client.get(path).status_code for path in ("/a", "/b", "/c")]

    assert statuses == [200, 429, 200]


class Broken:
    """A store that cannot be reached while `is_broken`."""

    def __init__(self) -> None:
        self.is_broken = True
        self.n_closed = 0
        self._inner = MemoryStore(clock=FakeClock())

    async def take(self, key: str, rate: Rate, *, needs: int, cost: int) -> Reading:
        if self.is_broken:
            raise StoreError("It is gone.")
        return await self._inner.take(key, rate, needs=needs, cost=cost)

    async def close(self) -> None:
        self.n_closed += 1


def failures(client: httpx2.Client) -> float:
    text = client.get("/metrics").text
    (line,) = [
        line
        for line in text.splitlines()
        if line.startswith("mlserve_rate_limit_store_failures_total ")
    ]
    return float(line.split()[1])


def test_without_its_store_requests_are_served_counted_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Broken()
    server = ModelServer().add(
        "echo", EchoHandler, dependencies=[Depends(rate_limit("1/minute", store=store))]
    )
    with TestClient(server.build()) as client:
        before = failures(client)
        statuses = [client.post(PREDICT, json=HELLO).status_code for _ in range(3)]
        while_broken = client.get("/ready")
        n_failures = failures(client) - before
        store.is_broken = False
        statuses += [client.post(PREDICT, json=HELLO).status_code for _ in range(2)]
        again = client.get("/ready")

    assert statuses == [200, 200, 200, 200, 429]
    assert n_failures == 3
    assert while_broken.status_code == 200
    assert while_broken.json()["troubles"] == {
        "rate limit '1/minute'": "Its store cannot be reached. Requests are not limited."
    }
    assert "troubles" not in again.json()
    assert [r.message for r in caplog.records].count("rate_limit.store.failed") == 1
    assert store.n_closed == 1


def test_without_its_store_requests_are_refused_where_that_is_asked_for() -> None:
    store = Broken()
    guard = Depends(rate_limit("1/minute", store=store, on_failure="refuse"))
    server = ModelServer(dependencies=[guard]).add("echo", EchoHandler)
    with TestClient(server.build()) as client:
        answer = client.post(PREDICT, json=HELLO)
        ready = client.get("/ready")

    assert error_of(answer, 503, "unavailable")["retry_after_s"] == 1
    assert ready.json()["troubles"]["rate limit '1/minute'"].endswith("Requests are refused.")


def test_tokens_that_cannot_be_charged_cost_no_answer() -> None:
    store = Broken()
    store.is_broken = False

    class Breaking(Counting):
        def infer(self, inputs: list[int], calls: list[Call]) -> list[int]:
            store.is_broken = True
            return super().infer(inputs, calls)

    guard = Depends(rate_limit("9/minute", cost="tokens", store=store))
    with TestClient(ModelServer(dependencies=[guard]).add("m", Breaking).build()) as client:
        answer = client.post("/v1/models/m/predict", json=4)
        ready = client.get("/ready")

    assert answer.json() == 4
    assert "troubles" in ready.json()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rate": "often"}, "rate must look like"),
        ({"rate": "-1/minute"}, "rate must look like"),
        ({"rate": "0/minute"}, "at least 1"),
        ({"cost": 0}, "`cost` must"),
        ({"cost": -1}, "`cost` must"),
        ({"cost": 11}, "from 1 to the limit of 10"),
        ({"cost": True}, "`cost` must"),
        ({"cost": "bytes"}, "`cost` must"),
        ({"by": "cookie"}, "`by` must"),
        ({"name": 'a"b'}, "`name` must"),
        ({"name": "a\r\nb"}, "`name` must"),
        ({"name": ""}, "`name` must"),
        ({"store": MemoryStore}, "`store` must"),
        ({"store": "redis://localhost"}, "`store` must"),
        ({"on_failure": "wait"}, "`on_failure` must"),
    ],
)
def test_what_cannot_work_is_refused_when_the_server_is_made(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        rate_limit(**{"rate": "10/minute", **options})


def test_an_endpoint_of_yours_says_it_once_also_where_answers_are_compressed() -> None:
    settings = ServerSettings(gzip_min_bytes=1)
    guard = Depends(rate_limit("5/minute", store=MemoryStore(clock=FakeClock())))
    server = ModelServer(dependencies=[guard], settings=settings).add("echo", EchoHandler)
    app = server.build()

    @app.get("/own")
    async def own(_: Annotated[None, guard]) -> str:
        return "mine"

    with TestClient(app) as client:
        answer = client.get("/own", headers={"Accept-Encoding": "gzip"})

    assert answer.headers.get_list("ratelimit") == ['"5/minute";r=4;t=61']
