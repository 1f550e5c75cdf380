"""The headers that steer a request, and those that every answer has."""

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.http.answers import error_of
from tests.http.waiting import until

from mlserve import Batching, Call, Limits, ModelHandler, ModelServer, Replicas, ServerSettings
from mlserve.testing import EchoHandler

PREDICT = "/v1/models/m/predict"


class Report(ModelHandler[str, dict[str, Any]]):
    """Answers with what it knows of the call."""

    def infer(self, inputs: list[str], calls: list[Call]) -> list[dict[str, Any]]:
        return [
            {
                "request_id": call.request_id,
                "remaining_s": call.remaining_s,
                "headers": dict(call.headers),
            }
            for call in calls
        ]


def client_of(**settings: Any) -> TestClient:
    return TestClient(ModelServer(settings=ServerSettings(**settings)).add("m", Report).build())


def test_a_sane_request_id_is_taken_into_the_call_and_the_answer() -> None:
    with client_of() as client:
        answer = client.post(PREDICT, json="", headers={"X-Request-Id": "order-66/b"})

    assert answer.headers.get_list("x-request-id") == ["order-66/b"]
    assert answer.json()["request_id"] == "order-66/b"


def test_requests_without_an_id_get_one_each() -> None:
    with client_of() as client:
        ids = {client.post(PREDICT, json="").headers["x-request-id"] for _ in range(5)}

    assert len(ids) == 5
    assert all(re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", request_id) for request_id in ids)


@pytest.mark.parametrize(
    "request_id", [b"", b"two words", b"a\tb", b"\xe4\xf6", b"x" * 129, b'" onload="\x7f']
)
def test_a_request_id_that_is_not_sane_is_replaced(request_id: bytes) -> None:
    with client_of() as client:
        answer = client.post(PREDICT, json="", headers=[(b"X-Request-Id", request_id)])

    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", answer.headers["x-request-id"])


def test_a_request_id_may_be_128_bytes_long() -> None:
    with client_of() as client:
        answer = client.post(PREDICT, json="", headers={"X-Request-Id": "x" * 128})

    assert answer.headers["x-request-id"] == "x" * 128


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/openapi.json", "/nowhere"])
def test_routes_without_a_model_have_a_request_id_too(path: str) -> None:
    with client_of() as client:
        answer = client.get(path, headers={"X-Request-Id": "mine"})

    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_the_header_of_the_request_id_can_be_renamed() -> None:
    with client_of(request_id_header="X-Trace") as client:
        good = client.post(PREDICT, json="", headers={"X-Trace": "t-1", "X-Request-Id": "no"})
        wrong = client.post(PREDICT, json=1, headers={"X-Trace": "t-2"})
        ready = client.get("/ready", headers={"X-Trace": "t-3"})

    assert (good.headers["x-trace"], good.json()["request_id"]) == ("t-1", "t-1")
    assert (wrong.headers["x-trace"], wrong.json()["error"]["request_id"]) == ("t-2", "t-2")
    assert ready.headers["x-trace"] == "t-3"
    assert "x-request-id" not in good.headers


def test_server_timing_names_the_four_stages_in_milliseconds() -> None:
    with client_of() as client:
        timing = client.post(PREDICT, json="").headers["server-timing"]

    stages = dict(part.split(";dur=") for part in timing.split(", "))
    assert list(stages) == ["queue", "preprocess", "infer", "postprocess"]
    assert all(float(value) >= 0 for value in stages.values())


def test_a_timeout_header_shortens_the_budget() -> None:
    with client_of() as client:
        answer = client.post(PREDICT, json="", headers={"X-Request-Timeout": "5.5"})

    assert 0 < answer.json()["remaining_s"] <= 5.5


def test_a_timeout_header_never_lengthens_the_budget() -> None:
    server = ModelServer().add("m", Report, limits=Limits(timeout_s=7))

    with TestClient(server.build()) as client:
        answer = client.post(PREDICT, json="", headers={"X-Request-Timeout": "1e9"})

    assert 0 < answer.json()["remaining_s"] <= 7


@pytest.mark.parametrize(
    "text", ["-1", "0", "-0.0", "NaN", "abc", "", "inf", "1e999", "0x10", "1_0"]
)
def test_a_timeout_that_is_no_positive_number_is_refused(text: str) -> None:
    with client_of() as client:
        answer = client.post(PREDICT, json="", headers={"X-Request-Timeout": text})

    error = error_of(answer, 400, "invalid_timeout")
    assert error["param"] == "X-Request-Timeout"


def test_a_tenth_of_a_second_is_enough_for_a_quick_model_and_ends_a_slow_one() -> None:
    released = threading.Event()

    class Slow(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            assert released.wait(10)
            return inputs

    server = ModelServer().add("slow", Slow).add("quick", EchoHandler)
    with TestClient(server.build()) as client:
        headers = {"X-Request-Timeout": "0.1"}
        slow = client.post("/v1/models/slow/predict", json="", headers=headers)
        released.set()
        quick = client.post(
            "/v1/models/quick/predict", json={"text": ""}, headers={"X-Request-Timeout": "5"}
        )

    assert "(stage: infer)" in error_of(slow, 504, "deadline_exceeded")["message"]
    assert quick.status_code == 200


@pytest.mark.parametrize("text", ["10", "-1", "a", "", "1.5", "٣"])
def test_a_priority_that_is_no_digit_is_refused_where_priorities_are_allowed(text: str) -> None:
    server = ModelServer().add("m", Report, limits=Limits(priorities=True))

    with TestClient(server.build()) as client:
        answer = client.post(
            PREDICT, json="", headers=[(b"X-Request-Priority", text.encode("utf-8"))]
        )

    assert error_of(answer, 422, "invalid_input")["param"] == "X-Request-Priority"


def test_a_priority_means_nothing_where_priorities_are_not_allowed() -> None:
    with client_of() as client:
        answer = client.post(PREDICT, json="", headers={"X-Request-Priority": "urgent"})

    assert answer.status_code == 200


@pytest.mark.parametrize("action", ["predict", "stream"])
def test_requests_of_a_better_priority_are_served_first(action: str) -> None:
    busy, released = threading.Event(), threading.Event()
    served: list[str] = []

    class Recorder(ModelHandler[str, str]):
        batching = Batching(max_size=1)

        def infer(self, inputs: list[str]) -> list[str]:
            served.extend(inputs)
            busy.set()
            assert released.wait(10)
            return inputs

        def stream(self, item: str) -> Iterator[str]:
            yield from self.infer([item])

    server = ModelServer()
    server.add("m", Recorder, limits=Limits(priorities=True), replicas=Replicas(max_streams=1))
    model = server.model_for("m")
    with TestClient(server.build()) as client:
        threads = []
        for n_waiting, (name, priority) in enumerate(
            [("first", "9"), ("low", "9"), ("middle", "5"), ("high", "0")]
        ):
            threads.append(
                threading.Thread(
                    target=client.post,
                    args=(f"/v1/models/m/{action}",),
                    kwargs={"json": name, "headers": {"X-Request-Priority": priority}},
                )
            )
            threads[-1].start()
            assert busy.wait(10)
            until(lambda n=n_waiting: model.statistics().queued == n)  # type: ignore[misc]  # bound
        released.set()
        for thread in threads:
            thread.join(10)

    assert served == ["first", "high", "middle", "low"]


def test_handlers_see_the_allowed_headers_only() -> None:
    with client_of(forward_headers=("X-Tenant", "X-Missing")) as client:
        answer = client.post(PREDICT, json="", headers={"x-tenant": "a", "X-Other": "b"})

    assert answer.json()["headers"] == {"x-tenant": "a"}


def test_handlers_see_no_headers_unless_they_are_allowed() -> None:
    with client_of() as client:
        answer = client.post(PREDICT, json="", headers={"Authorization": "Bearer secret"})

    assert answer.json()["headers"] == {}


@pytest.mark.parametrize("name", ["Authorization", "cookie", "X-Api-Key", "Proxy-Authorization"])
def test_credentials_cannot_be_allowed(name: str) -> None:
    with pytest.raises(ValueError, match="never see credentials"):
        ServerSettings(forward_headers=(name,))
