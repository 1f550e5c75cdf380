"""Requests that name no version: which one answers, what it says of that, and who gets copies."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, HTTPException
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from starlette.requests import Request
from tests.http.answers import error_of, events_of
from tests.http.releases import (
    Holding,
    Raising,
    Second,
    Text,
    Twin,
    Versioned,
    two_versions,
)
from tests.http.waiting import until

from mlserve import ConfigurationError, Limits, ModelHandler, ModelServer, Shadow
from mlserve.http.exchange import EXCHANGE
from mlserve.testing import running

PREDICT, STREAM = "/models/m/predict", "/models/m/stream"
BODY = {"text": "one two"}


def versions_of(client: Any, n: int, **headers: str) -> Counter[str]:
    return Counter(
        client.post(PREDICT, json=BODY, headers=headers).json()["version"] for _ in range(n)
    )


def shadowed(version: str, outcome: str) -> float:
    labels = {"model": "m", "version": version, "outcome": outcome}
    return REGISTRY.get_sample_value("mlserve_shadow_total", labels) or 0.0


@pytest.fixture
def counted() -> Any:
    """Gives how often something became of copies for v2 since the test began."""
    outcomes = ("same", "different", "failed", "dropped")
    before = {outcome: shadowed("v2", outcome) for outcome in outcomes}
    return lambda outcome: shadowed("v2", outcome) - before[outcome]


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    Holding.may_go.clear()
    Holding.n_held.clear()
    yield
    Holding.may_go.set()


def test_without_a_route_the_newest_version_answers_and_the_answer_says_so() -> None:
    with TestClient(two_versions().build()) as client:
        answer = client.post(PREDICT, json=BODY)
        other = client.post("/v1" + PREDICT, json=BODY)

    assert answer.json()["version"] == answer.headers["x-model-version"] == "v2"
    assert "x-model-version" not in other.headers


def test_the_only_version_is_named_too() -> None:
    with TestClient(ModelServer().add("m", Versioned).build()) as client:
        answers = [client.post(PREDICT, json=BODY), client.post(PREDICT, content="{")]

    assert [answer.headers["x-model-version"] for answer in answers] == ["v1", "v1"]


def test_requests_are_divided_by_the_weights() -> None:
    server = two_versions().route("m", {"v1": 0.75, "v2": 0.25})

    with TestClient(server.build()) as client:
        counts = versions_of(client, 400)

    assert 260 < counts["v1"] < 340
    assert counts.total() == 400


def test_a_client_with_a_routing_key_keeps_its_version() -> None:
    server = two_versions().route("m", {"v1": 0.5, "v2": 0.5})

    with TestClient(server.build()) as client:
        by_key = {
            key: versions_of(client, 5, **{"X-Routing-Key": key}) for key in map(str, range(40))
        }

    assert all(len(counts) == 1 for counts in by_key.values())
    assert len({next(iter(counts)) for counts in by_key.values()}) == 2


def test_a_client_with_an_api_key_keeps_its_version_whatever_else_it_sends() -> None:
    async def api_key(request: Request) -> None:
        request.scope[EXCHANGE].key = request.headers["x-test-key"]

    server = two_versions(dependencies=[Depends(api_key)]).route("m", {"v1": 0.5, "v2": 0.5})

    with TestClient(server.build()) as client:
        by_key = {
            key: Counter(
                client.post(
                    PREDICT, json=BODY, headers={"X-Test-Key": key, "X-Routing-Key": str(i)}
                ).headers["x-model-version"]
                for i in range(5)
            )
            for key in map(str, range(40))
        }

    assert all(len(counts) == 1 for counts in by_key.values())
    assert len({next(iter(counts)) for counts in by_key.values()}) == 2


def test_streams_follow_the_weights() -> None:
    server = two_versions().route("m", {"v1": 1.0})

    with TestClient(server.build()) as client:
        posted = client.post(STREAM, json=BODY)
        got = client.get(STREAM, params=BODY)

    for answer in (posted, got):
        assert answer.headers["x-model-version"] == "v1"
        assert [event[:15] for event in events_of(answer)[:-1]] == ['{"version":"v1"'] * 2


class OtherTypes(ModelHandler[int, list[int]]):
    def examples(self) -> list[int]:
        return [1]

    def infer(self, inputs: list[int]) -> list[list[int]]:
        return [[number] for number in inputs]


def test_the_version_that_answers_validates_by_its_own_schema() -> None:
    server = two_versions(OtherTypes).route("m", {"v2": 1.0})

    with TestClient(server.build()) as client:
        taken = client.post(PREDICT, json=7)
        refused = client.post(PREDICT, json=BODY)

        server.route("m", {"v1": 1.0})
        other = client.post(PREDICT, json=BODY)

    assert taken.json() == [7]
    error_of(refused, 422, "validation_error")
    assert refused.headers["x-model-version"] == "v2"
    assert other.json()["version"] == "v1"


def test_an_action_is_answered_only_by_versions_that_can() -> None:
    server = two_versions(OtherTypes).route("m", {"v1": 0.1, "v2": 0.9})

    with TestClient(server.build()) as client:
        streams = [client.post(STREAM, json=BODY) for _ in range(20)]
        server.route("m", {"v2": 1.0})
        none = client.post(STREAM, json=BODY)

    assert {answer.headers["x-model-version"] for answer in streams} == {"v1"}
    assert "Name another version" in error_of(none, 404, "not_found")["message"]


def test_the_log_and_the_metrics_have_the_version_that_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def count(version: str) -> float:
        labels = {"model": "m", "version": version, "code": "ok"}
        return REGISTRY.get_sample_value("mlserve_requests_total", labels) or 0.0

    server = two_versions().route("m", {"v1": 1.0})
    caplog.set_level(logging.INFO, "mlserve.access")

    with TestClient(server.build()) as client:
        before = count("v1"), count("v2"), count("-")
        client.post(PREDICT, json=BODY)
        after = count("v1"), count("v2"), count("-")

    lines = [r.inference for r in caplog.records if hasattr(r, "inference")]
    assert [(line["model"], line["version"]) for line in lines] == [("m", "v1")]
    assert after == (before[0] + 1, before[1], before[2])


def refuse_v2() -> None:
    raise HTTPException(403)


def test_each_version_keeps_what_stands_before_it() -> None:
    server = ModelServer().add("m", Versioned)
    server.add("m", Second, version="v2", dependencies=[Depends(refuse_v2)])

    with TestClient(server.build()) as client:
        refused = client.post(PREDICT, json=BODY)
        server.route("m", {"v1": 1.0})
        taken = client.post(PREDICT, json=BODY)

    error_of(refused, 403, "forbidden")
    assert taken.status_code == 200


def test_each_version_keeps_its_bound_of_bodies() -> None:
    server = ModelServer().add("m", Versioned, limits=Limits(max_body_bytes=30))
    server.add("m", Second, version="v2").route("m", {"v1": 1.0})

    with TestClient(server.build()) as client:
        refused = client.post(PREDICT, json={"text": "x" * 40})
        server.route("m", {"v2": 1.0})
        taken = client.post(PREDICT, json={"text": "x" * 40})

    error_of(refused, 413, "body_too_large")
    assert taken.status_code == 200


def test_a_path_of_the_newest_version_is_the_path_without_a_version() -> None:
    server = ModelServer().add("m", Versioned)
    server.add("m", Second, version="v2", path="/classify").route("m", {"v1": 1.0})

    with TestClient(server.build()) as client:
        answer = client.post("/classify", json=BODY)

    assert answer.json()["version"] == "v1"


def test_openapi_says_how_a_path_without_a_version_is_answered() -> None:
    schema = two_versions(OtherTypes).route("m", {"v1": 0.9, "v2": 0.1}).build().openapi()

    operation = schema["paths"][PREDICT]["post"]
    assert "`v1`, `v2`" in operation["description"]
    shown = operation["requestBody"]["content"]["application/json"]["schema"]
    assert shown == {"$ref": "#/components/schemas/Text"}


def test_a_route_that_cannot_be_is_refused() -> None:
    server = two_versions()

    wrong: list[Any] = [("n", {"v1": 1}), ("m", {"v3": 1}), ("m", {"v1": 0.5}), ("m", {"v1": 1}, 3)]
    for arguments in wrong:
        with pytest.raises(ConfigurationError):
            server.route(*arguments)

    assert server.registry.traffic("m").weights == {"v2": 1.0}


@pytest.mark.slow
def test_twenty_swaps_under_load_lose_nothing_and_mix_nothing() -> None:
    server = two_versions().route("m", {"v1": 1.0})
    app = server.build()

    @app.post("/swap/{version}")
    async def swap(version: str) -> None:
        server.route("m", {version: 1.0})

    end = threading.Event()
    answers: list[httpx2.Response] = []

    def ask(url: str) -> None:
        with httpx2.Client(base_url=url, timeout=20) as client:
            while not end.is_set():
                answers.append(client.post(PREDICT, json=BODY))
                answers.append(client.post(STREAM, json=BODY))

    with running(server) as client, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, str(client.base_url)) for _ in range(4)]
        try:
            for number in range(20):
                version = f"v{number % 2 + 1}"
                before = len(answers)
                assert client.post(f"/swap/{version}").status_code == 200
                assert client.post(PREDICT, json=BODY).json()["version"] == version
                until(lambda before=before: len(answers) > before + 8)  # type: ignore[misc]
        finally:
            end.set()
        for each in asking:
            each.result(20)

    assert {answer.status_code for answer in answers} == {200}
    served = Counter()  # type: ignore[var-annotated]
    for answer in answers:
        version = answer.headers["x-model-version"]
        other = {"v1": "v2", "v2": "v1"}[version]
        assert f'"version":"{version}"' in answer.text
        assert f'"version":"{other}"' not in answer.text
        served[version] += 1
    assert min(served["v1"], served["v2"]) > 20


@pytest.mark.slow
def test_a_crowded_version_refuses_by_the_head_and_says_which_it_is() -> None:
    server = two_versions(Holding, limits=Limits(max_queue_size=1)).route("m", {"v2": 1.0})
    model = server.model_for("m", "v2")

    with running(server) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, PREDICT, json=BODY)
        until(lambda: bool(Holding.n_held))
        second = pool.submit(client.post, PREDICT, json=BODY)
        until(lambda: model.statistics().queued == 1)
        refused = client.post(PREDICT, json=BODY)
        beside = client.post("/v1" + PREDICT, json=BODY)
        Holding.may_go.set()
        taken = [first.result(15).status_code, second.result(15).status_code]

    error_of(refused, 503, "queue_full")
    assert refused.headers["x-model-version"] == "v2"
    assert beside.status_code == 200
    assert taken == [200, 200]


def call(client: TestClient, function: Any) -> None:
    """Call a function on the event loop of the server."""
    assert client.portal is not None
    client.portal.call(function)


def copies_of(server: ModelServer) -> Any:
    return server.registry._shadows["m"]


def test_copies_that_answer_alike_are_counted_as_the_same(counted: Any) -> None:
    server = two_versions(Versioned).route("m", {"v1": 1.0}, shadow="v2")

    with TestClient(server.build()) as client:
        answers = [client.post(PREDICT, json=BODY), client.post(STREAM, json=BODY)]
        until(lambda: counted("same") == 2)

    assert [answer.headers["x-model-version"] for answer in answers] == ["v1", "v1"]


def test_answers_that_differ_are_logged_by_their_places_and_never_by_what_stands_there(
    counted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = two_versions().route("m", {"v1": 1.0}, shadow="v2")
    caplog.set_level(logging.INFO, "mlserve")

    with TestClient(server.build()) as client:
        body = {"text": "confidential"}
        answer = client.post(PREDICT, json=body, headers={"X-Request-Id": "abc"})
        until(lambda: counted("different") == 1)

    assert answer.json()["version"] == "v1"
    (record,) = [r for r in caplog.records if r.getMessage() == "shadow.compare.differed"]
    facts = vars(record)
    assert (facts["request_id"], facts["model"]) == ("abc", "m")
    assert (facts["version"], facts["shadow"]) == ("v1", "v2")
    assert (facts["n_differences"], facts["places"]) == (1, ["/version changed"])
    assert "confidential" not in repr(facts)


class Tokens(ModelHandler[Text, dict[str, int]]):
    """Its keys are words of the client."""

    def infer(self, inputs: list[Text]) -> list[dict[str, int]]:
        return [{one.text: 1} for one in inputs]


class OtherTokens(Tokens):
    def infer(self, inputs: list[Text]) -> list[dict[str, int]]:
        return [{one.text: 2} for one in inputs]


@pytest.mark.filterwarnings("ignore")
def test_keys_that_no_schema_declares_are_not_logged(
    counted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = ModelServer().add("m", Tokens).add("m", OtherTokens, version="v2")
    server.route("m", {"v1": 1.0}, shadow="v2")
    caplog.set_level(logging.INFO, "mlserve")

    with TestClient(server.build()) as client:
        client.post(PREDICT, json={"text": "confidential"})
        until(lambda: counted("different") == 1)

    (record,) = [r for r in caplog.records if r.getMessage() == "shadow.compare.differed"]
    assert vars(record)["places"] == ["/* changed"]


def test_numbers_may_differ_as_much_as_the_shadow_says(counted: Any) -> None:
    server = two_versions(Twin)

    with TestClient(server.build()) as client:
        server.route("m", {"v1": 1.0}, shadow="v2")
        client.post(PREDICT, json=BODY)
        until(lambda: counted("different") == 1)
        server.route("m", {"v1": 1.0}, shadow=Shadow("v2", relative=1e-3))
        client.post(PREDICT, json=BODY)
        until(lambda: counted("same") == 1)


def test_a_share_of_the_requests_is_copied(counted: Any) -> None:
    server = two_versions(Versioned).route("m", {"v1": 1.0}, shadow=("v2", 0.5))

    with TestClient(server.build()) as client:
        for _ in range(100):
            client.post(PREDICT, json=BODY)
        call(client, copies_of(server).wait_idle)

    assert 25 < counted("same") < 75


def test_what_a_version_answers_itself_or_refuses_is_not_copied(counted: Any) -> None:
    server = two_versions(Versioned).route("m", {"v1": 0.5, "v2": 0.5}, shadow="v2")

    with TestClient(server.build()) as client:
        answers = [client.post(PREDICT, json=BODY) for _ in range(40)]
        for _ in range(10):
            client.post(PREDICT, json={"wrong": 1})
            client.post("/v1" + PREDICT, json=BODY)
        call(client, copies_of(server).wait_idle)

    served = Counter(answer.headers["x-model-version"] for answer in answers)
    assert counted("same") == served["v1"] > 0
    assert counted("dropped") == counted("failed") == 0


def test_a_shadow_that_raises_is_counted_and_touches_no_answer(
    counted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = two_versions(Raising).route("m", {"v1": 1.0}, shadow="v2")
    caplog.set_level(logging.INFO, "mlserve")

    with TestClient(server.build()) as client:
        answers = [client.post(PREDICT, json=BODY) for _ in range(3)]
        until(lambda: counted("failed") == 3)

    assert [answer.json()["version"] for answer in answers] == ["v1"] * 3
    failed = [vars(r) for r in caplog.records if r.getMessage() == "shadow.copy.failed"]
    assert [facts["code"] for facts in failed] == ["model_error"] * 3


def test_a_shadow_that_takes_other_requests_is_counted_as_failed(counted: Any) -> None:
    server = two_versions(OtherTypes).route("m", {"v1": 1.0}, shadow="v2")

    with TestClient(server.build()) as client:
        assert client.post(PREDICT, json=BODY).status_code == 200
        until(lambda: counted("failed") == 1)


def test_a_shadow_that_hangs_takes_a_few_copies_and_holds_up_nobody(counted: Any) -> None:
    options = Shadow("v2", max_running=2, max_waiting=3)
    server = two_versions(Holding).route("m", {"v1": 1.0}, shadow=options)

    with TestClient(server.build()) as client:
        answers = [client.post(PREDICT, json=BODY) for _ in range(12)]
        until(lambda: counted("dropped") == 7)
        held = server.model_for("m", "v2").statistics().in_flight
        Holding.may_go.set()
        until(lambda: counted("same") == 5)

    assert [answer.status_code for answer in answers] == [200] * 12  # while every copy hangs
    assert held == 2


def test_a_copy_has_a_deadline_of_its_own(counted: Any, caplog: pytest.LogCaptureFixture) -> None:
    options = Shadow("v2", timeout_s=0.05)
    server = two_versions(Holding).route("m", {"v1": 1.0}, shadow=options)
    caplog.set_level(logging.INFO, "mlserve")

    with TestClient(server.build()) as client:
        client.post(PREDICT, json=BODY)
        until(lambda: counted("failed") == 1)
        Holding.may_go.set()

    (failed,) = [vars(r) for r in caplog.records if r.getMessage() == "shadow.copy.failed"]
    assert failed["code"] == "deadline_exceeded"


def test_copies_do_not_hold_up_the_end_of_the_server(counted: Any) -> None:
    server = two_versions(Holding).route("m", {"v1": 1.0}, shadow="v2")

    with TestClient(server.build()) as client:
        for _ in range(5):
            client.post(PREDICT, json=BODY)
        until(lambda: len(Holding.n_held) == 1)
        call(client, server.registry.begin_drain)
        model = server.model_for("m", "v2")
        until(lambda: model.statistics().in_flight == 0)  # though a hook still hangs
        assert model.statistics().running == 1
        Holding.may_go.set()


class Long(Versioned):
    """Answers with more than is kept of an answer."""

    def infer(self, inputs: list[Text]) -> Any:
        return [one.model_copy(update={"text": "x" * 2**20}) for one in super().infer(inputs)]


def test_an_answer_that_is_too_long_to_be_kept_is_dropped(counted: Any) -> None:
    server = ModelServer().add("m", Long).add("m", Long, version="v2")
    server.route("m", {"v1": 1.0}, shadow="v2")

    with TestClient(server.build()) as client:
        assert len(client.post(PREDICT, json=BODY).content) > 2**20
        until(lambda: counted("dropped") == 1)


def test_a_request_that_is_too_long_to_be_kept_is_dropped(counted: Any) -> None:
    server = two_versions(Versioned).route("m", {"v1": 1.0}, shadow="v2")
    words = {"text": "x" * 2**20}

    with TestClient(server.build()) as client:
        assert client.post(STREAM, json={"text": " " * 2**20 + "a"}).status_code == 200
        until(lambda: counted("dropped") == 1)
        assert client.post(PREDICT, json=words).status_code == 200
        until(lambda: counted("dropped") == 2)


def own_endpoint(server: ModelServer) -> None:
    app = server.build()

    @app.get("/version")
    async def version(model: Annotated[Any, Depends(server.model("m"))]) -> str:
        return str(model.version)


def test_code_of_your_own_gets_the_newest_version_whatever_the_weights_are() -> None:
    server = two_versions().route("m", {"v1": 1.0})
    own_endpoint(server)

    with TestClient(server.build()) as client:
        assert client.get("/version").json() == "v2"
