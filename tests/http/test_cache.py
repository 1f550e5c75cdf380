"""Answers that are kept, over HTTP."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import Depends
from tests.http.ranked import key_of
from tests.http.waiting import until
from tests.processes.handlers import follow

from mlserve import (
    Batching,
    Cache,
    Call,
    Model,
    ModelHandler,
    ModelServer,
    Replicas,
    ServerSettings,
    api_keys,
)
from mlserve.testing import running

PATH = "/v1/models/m/predict"


class Numbered(ModelHandler[str, int]):
    """Does what a request says, and gives how many requests it has served."""

    batching = Batching(max_size=1)
    n_served = 0

    def infer(self, inputs: list[str]) -> list[int]:
        follow(inputs[0])
        if inputs[0] == "break":
            raise RuntimeError("It is broken.")
        self.n_served += 1
        return [self.n_served]


def serving(handler: Any = Numbered, cache: Cache | None = None, **options: Any) -> ModelServer:
    settings = options.pop("settings", None)
    return ModelServer(settings=settings).add("m", handler, cache=cache or Cache(), **options)


def ask(client: httpx2.Client, order: Any = "", **headers: str) -> tuple[Any, str | None]:
    """Give an answer with its `Cache-Status`."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = client.post(PATH, json=order, headers=names)
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers.get("cache-status")


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["thread", "process"])
def test_an_equal_request_is_given_the_answer_that_is_kept(placement: Any) -> None:
    with running(serving(replicas=Replicas(placement=placement))) as client:
        answers = [ask(client), ask(client), ask(client, "other")]

    assert answers == [
        (1, "mlserve; fwd=uri-miss; stored"),
        (1, "mlserve; hit"),
        (2, "mlserve; fwd=uri-miss; stored"),
    ]


def test_a_kept_answer_says_how_old_it_is_and_for_how_long_it_will_be_given() -> None:
    with running(serving(cache=Cache(ttl_s=1000))) as client:
        first = client.post(PATH, json="")
        second = client.post(PATH, json="")

    assert "age" not in first.headers
    assert second.headers["age"] == "0"
    assert second.headers["cache-status"] == "mlserve; hit; ttl=999"


def test_white_space_and_defaults_do_not_make_another_request() -> None:
    with running(serving()) as client:
        heads = {"Content-Type": "application/json"}
        answers = [client.post(PATH, content=body, headers=heads) for body in ('""', ' "" \n')]

    assert [answer.json() for answer in answers] == [1, 1]


def test_what_a_request_wishes_of_the_cache_is_done() -> None:
    with running(serving()) as client:
        answers = [
            ask(client),
            ask(client, cache_control="no-cache"),
            ask(client),
            ask(client, cache_control="no-store"),
            ask(client),
            ask(client, cache_control="max-age=0"),
            ask(client, cache_control="max-age=1000"),
        ]

    assert [number for number, _ in answers] == [1, 2, 2, 3, 2, 4, 4]
    assert [status for _, status in answers] == [
        "mlserve; fwd=uri-miss; stored",
        "mlserve; fwd=request; stored",
        "mlserve; hit",
        "mlserve; fwd=request",
        "mlserve; hit",
        "mlserve; fwd=request; stored",
        "mlserve; hit",
    ]


def test_an_error_is_not_kept() -> None:
    with running(serving()) as client:
        errors = [client.post(PATH, json="break") for _ in range(2)]

    assert [answer.status_code for answer in errors] == [500, 500]
    assert not any("cache-status" in answer.headers for answer in errors)


def test_an_answer_that_is_too_large_is_not_kept() -> None:
    with running(serving(cache=Cache(max_bytes=10))) as client:
        answers = [ask(client), ask(client)]

    assert answers == [(1, "mlserve; fwd=uri-miss"), (2, "mlserve; fwd=uri-miss")]


def test_headers_that_the_handler_sees_belong_to_the_request() -> None:
    class Greets(ModelHandler[str, str]):
        def infer(self, inputs: list[str], calls: list[Call]) -> list[str]:
            return [call.headers.get("x-language", "none") for call in calls]

    settings = ServerSettings(forward_headers=("X-Language",))
    with running(serving(Greets, settings=settings)) as client:
        answers = [ask(client, x_language=name)[0] for name in ("de", "en", "de")]
        _, status = ask(client, x_language="en", x_other="1")

    assert answers == ["de", "en", "de"]
    assert status == "mlserve; hit"


@pytest.mark.parametrize("per_key", [True, False])
def test_keys_share_answers_unless_each_is_to_have_its_own(per_key: bool) -> None:
    keys = api_keys([f"{name}={key_of(name)}" for name in ("ann", "bob")])
    server = serving(cache=Cache(per_key=per_key), dependencies=[Depends(keys)])
    with running(server) as client:
        numbers = [ask(client, x_api_key=key_of(name))[0] for name in ("ann", "bob", "ann")]

    assert numbers == ([1, 2, 1] if per_key else [1, 1, 1])


def test_equal_requests_in_flight_are_computed_once(tmp_path: Path) -> None:
    path = tmp_path / "it"
    server = serving()

    with running(server) as client, ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(ask, client, f"hold {path}") for _ in range(8)]
        until(lambda: n_waiting(server.model_for("m")) == 8)
        until(path.exists)
        path.with_suffix(".go").touch()
        answers = [task.result(10) for task in tasks]
        metrics = client.get("/metrics").text
        ids = {client.post(PATH, json=f"hold {path}").headers["x-request-id"] for _ in range(2)}

    statuses = [status for _, status in answers]
    assert {number for number, _ in answers} == {1}
    assert statuses.count("mlserve; fwd=uri-miss; stored") == 1
    assert statuses.count("mlserve; fwd=uri-miss; collapsed; stored") == 7
    assert 'mlserve_cache_bytes{model="m",version="v1"} ' in metrics
    assert len(ids) == 2


def test_a_client_that_leaves_does_not_take_the_answer_from_another_one(tmp_path: Path) -> None:
    path = tmp_path / "it"
    server = serving()

    with running(server) as client, ThreadPoolExecutor(1) as pool:
        leaving = socket.create_connection((client.base_url.host, client.base_url.port or 80), 10)
        body = f'"hold {path}"'
        head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        leaving.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
        until(path.exists)
        staying = pool.submit(ask, client, f"hold {path}")
        until(lambda: n_waiting(server.model_for("m")) == 2)
        leaving.close()
        until(lambda: n_waiting(server.model_for("m")) == 1)
        path.with_suffix(".go").touch()
        answer = staying.result(10)

    assert answer == (1, "mlserve; fwd=uri-miss; collapsed; stored")


def n_waiting(model: Model) -> int:
    answers = model.engine.answers
    assert answers is not None
    return sum(len(flight.waiting) for flight in list(answers._flights.values()))


def test_what_the_cache_did_is_counted() -> None:
    def counts(client: httpx2.Client) -> dict[str, float]:
        prefix = 'mlserve_cache_total{model="counted",outcome="'
        lines = [line for line in client.get("/metrics").text.splitlines() if prefix in line]
        return {line.split('"')[3]: float(line.rsplit(" ", 1)[1]) for line in lines}

    server = ModelServer().add("counted", Numbered, cache=Cache())
    with running(server) as client:
        before = counts(client)
        for order in ("a", "a", "a", "b"):
            client.post("/v1/models/counted/predict", json=order)
        after = counts(client)

    assert before == {"hit": 0, "miss": 0, "coalesced": 0}
    assert after == {"hit": 2, "miss": 2, "coalesced": 0}


def test_without_a_cache_nothing_is_said_of_one() -> None:
    with running(ModelServer().add("m", Numbered)) as client:
        answers = [ask(client, cache_control="max-age=9"), ask(client)]

    assert answers == [(1, None), (2, None)]
