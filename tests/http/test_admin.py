"""The routes of whoever runs the server."""

import functools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient
from tests.http.answers import error_of
from tests.http.releases import Holding, Scored, Text, Versioned, two_versions
from tests.http.waiting import until

from mlserve import ConfigurationError, ModelHandler, ModelServer, ServerSettings
from mlserve.testing import EchoHandler

ADMIN = {"X-Admin": "yes"}
JSON = {"Content-Type": "application/json"}
BODY = {"text": "one"}
PREDICT = "/models/m/predict"
WEIGHTS = "/admin/models/m/weights"


def only_admins(x_admin: str = Header("")) -> None:
    if x_admin != "yes":
        raise HTTPException(403)


def with_admin(second: Any = None, **options: Any) -> ModelServer:
    server = ModelServer(admin=[Depends(only_admins)], **options).add("m", Versioned)
    return server.add("m", second or Versioned, version="v2")


@pytest.fixture
def server() -> ModelServer:
    return with_admin(settings=ServerSettings(flags={"beta": False}))


@pytest.fixture
def client(server: ModelServer) -> Iterator[TestClient]:
    with TestClient(server.build(), headers=ADMIN) as client:
        yield client


ROUTES = [
    ("GET", "/admin/models"),
    ("GET", WEIGHTS),
    ("PUT", WEIGHTS),
    ("POST", "/admin/models/m/v1/reload"),
    ("POST", "/admin/drain"),
    ("GET", "/admin/flags"),
    ("GET", "/admin/flags/beta"),
    ("PUT", "/admin/flags/beta"),
]
GOOD_BODIES = {WEIGHTS: {"weights": {"v1": 1.0}}, "/admin/flags/beta": {"value": True}}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_an_admin_dependency_there_are_no_such_routes(method: str, path: str) -> None:
    with TestClient(two_versions().build()) as client:
        answer = client.request(method, path, json=GOOD_BODIES.get(path))

    error_of(answer, 404, "not_found")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_is_behind_the_dependency(
    server: ModelServer, client: TestClient, method: str, path: str
) -> None:
    answer = client.request(method, path, json=GOOD_BODIES.get(path), headers={"X-Admin": "no"})

    error_of(answer, 403, "forbidden")
    assert server.registry.traffic("m").weights == {"v2": 1.0}
    assert server.flags.list() == {"beta": False}
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("path", GOOD_BODIES)
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"{}", b"[" * 100_000, b" " * (17 * 2**20)])
def test_whatever_the_body_is_the_dependency_is_asked_first(
    client: TestClient, path: str, body: bytes
) -> None:
    answer = client.put(path, content=body, headers={"X-Admin": "no"} | JSON)

    error_of(answer, 403, "forbidden")


@pytest.mark.parametrize("path", GOOD_BODIES)
@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", JSON, 400, "invalid_json"),
        (b"{", JSON, 400, "invalid_json"),
        (b"\xff", JSON, 400, "invalid_json"),
        (b"[" * 100_000, JSON, 400, "invalid_json"),
        (b'{"weights": {"v1": NaN}, "value": NaN}', JSON, 400, "invalid_json"),
        (b" " * (17 * 2**20), JSON, 413, "body_too_large"),
        (b"{}", {}, 415, "unsupported_media_type"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    ],
)
def test_a_body_that_is_no_json_is_refused_as_everywhere(
    client: TestClient, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    error_of(client.put(path, content=body, headers=headers), status, code)


def test_every_route_is_behind_the_dependencies_of_the_server_too() -> None:
    def closed() -> None:
        raise HTTPException(401)

    server = with_admin(dependencies=[Depends(closed)])

    with TestClient(server.build(), headers=ADMIN) as client:
        answers = [client.request(m, p, json=GOOD_BODIES.get(p)) for m, p in ROUTES]

    assert {answer.status_code for answer in answers} == {401}


@pytest.mark.parametrize("admin", [[], [only_admins]])
def test_an_admin_without_a_dependency_is_refused(admin: Any) -> None:
    with pytest.raises(ConfigurationError, match="Depends"):
        ModelServer(admin=admin)


def test_the_list_has_states_weights_and_statistics() -> None:
    server = with_admin().route("m", {"v1": 0.9, "v2": 0.1}, shadow=("v2", 0.5))
    server.deprecate("v1", successor="v2")

    with TestClient(server.build(), headers=ADMIN) as client:
        client.post("/v1" + PREDICT, json=BODY)
        body = client.get("/admin/models").json()

    assert body["is_draining"] is False
    (model,) = body["models"]
    first, second = model["versions"]
    assert (model["name"], model["shadow"]["version"], model["shadow"]["share"]) == ("m", "v2", 0.5)
    assert (first["version"], first["state"], first["weight"]) == ("v1", "ready", 0.9)
    assert (first["is_deprecated"], second["is_deprecated"]) == (True, False)
    assert (first["statistics"]["requests"], second["statistics"]["requests"]) == (1, 0)


def test_weights_are_changed_while_the_server_runs(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    before = client.get(WEIGHTS).json()

    answer = client.put(WEIGHTS, json={"weights": {"v1": 1.0}})

    assert before == {"weights": {"v2": 1.0}, "shadow": None}
    assert answer.json() == {"weights": {"v1": 1.0}, "shadow": None} == client.get(WEIGHTS).json()
    assert client.post(PREDICT, json=BODY).headers["x-model-version"] == "v1"
    assert "admin.weights.changed" in caplog.text


def test_a_shadow_stays_until_it_is_named(client: TestClient) -> None:
    shadow = {"version": "v2", "share": 0.25}
    first = client.put(WEIGHTS, json={"weights": {"v1": 1.0}, "shadow": shadow}).json()
    kept = client.put(WEIGHTS, json={"weights": {"v1": 0.5, "v2": 0.5}}).json()
    ended = client.put(WEIGHTS, json={"weights": {"v1": 1.0}, "shadow": None}).json()

    assert first["shadow"] == kept["shadow"]
    assert (first["shadow"]["version"], first["shadow"]["share"]) == ("v2", 0.25)
    assert ended["shadow"] is None


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"weights": {"v1": 0.5}}, "invalid_input", "sum to 1"),
        ({"weights": {"v3": 1}}, "invalid_input", "no version 'v3'"),
        ({"weights": {"v1": 1}, "shadow": {"version": "v1"}}, "invalid_input", "would be copied"),
        ({"weights": {"v1": 1}, "shadow": {"version": "v2", "share": 2}}, "invalid_input", "share"),
        ({"weights": {"v1": "much"}}, "validation_error", "weights.v1"),
        ({"weight": {"v1": 1}}, "validation_error", "weights"),
        ({"weights": {"v1": 1}, "more": 1}, "validation_error", "more"),
    ],
)
def test_weights_that_cannot_be_change_nothing(
    client: TestClient, body: Any, code: str, words: str
) -> None:
    error = error_of(client.put(WEIGHTS, json=body), 422, code)

    assert words in f"{error['message']} {error['param']}"
    assert client.get(WEIGHTS).json()["weights"] == {"v2": 1.0}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/models/n/weights"),
        ("PUT", "/admin/models/n/weights"),
        ("POST", "/admin/models/n/v1/reload"),
        ("POST", "/admin/models/m/v3/reload"),
    ],
)
def test_a_model_that_is_not_there_is_not_found(client: TestClient, method: str, path: str) -> None:
    body = {"weights": {"v1": 1.0}} if method == "PUT" else None

    error_of(client.request(method, path, json=body), 404, "model_not_found")


class Counted(ModelHandler[Text, Scored]):
    """Answers with how often it was loaded; the third time fails."""

    loads: list[int]

    def __init__(self, loads: list[int]) -> None:
        self.loads = loads

    def load(self) -> None:
        self.loads.append(len(self.loads) + 1)
        self.number = len(self.loads)
        if self.number == 3:
            raise OSError("/secret/weights are gone")

    def examples(self) -> list[Text]:
        return [Text(text="a")]

    def infer(self, inputs: list[Text]) -> list[Scored]:
        return [Scored(version=str(self.number), text=one.text) for one in inputs]


def test_a_model_is_loaded_anew_and_one_that_cannot_be_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = with_admin(functools.partial(Counted, []))

    def number(client: TestClient) -> Any:
        return client.post("/v2" + PREDICT, json=BODY).json()["version"]

    with TestClient(server.build(), headers=ADMIN) as client:
        numbers = [number(client)]
        loaded = client.post("/admin/models/m/v2/reload")
        numbers.append(number(client))
        failed = client.post("/admin/models/m/v2/reload")
        numbers.append(number(client))

    assert loaded.json() == {"name": "m", "version": "v2", "state": "ready"}
    assert "secret" not in error_of(failed, 500, "model_error")["message"]
    assert "/secret/weights are gone" in caplog.text
    assert numbers == ["1", "2", "2"]


def test_an_instance_cannot_be_loaded_anew() -> None:
    server = with_admin(EchoHandler())

    with TestClient(server.build(), headers=ADMIN) as client:
        answer = client.post("/admin/models/m/v2/reload")

    assert "instance" in error_of(answer, 409, "conflict")["message"]


def test_what_would_reach_one_of_several_processes_is_refused(
    server: ModelServer, client: TestClient
) -> None:
    for model in server.models():
        model.engine.n_processes = 3

    answers = [
        client.put(WEIGHTS, json={"weights": {"v1": 1.0}}),
        client.post("/admin/models/m/v1/reload"),
        client.post("/admin/drain"),
        client.put("/admin/flags/beta", json={"value": True}),
    ]

    for answer in answers:
        assert "3 HTTP processes" in error_of(answer, 409, "conflict")["message"]
    assert client.get("/ready").status_code == 200
    assert client.get("/admin/models").status_code == 200


def test_a_drain_turns_ready_false_and_lets_end_what_has_begun() -> None:
    Holding.may_go.clear()
    Holding.n_held.clear()
    server = with_admin(Holding)

    with TestClient(server.build(), headers=ADMIN) as client:
        portal = client.portal
        assert portal is not None
        held = portal.start_task_soon(server.model_for("m", "v2").predict, BODY)
        until(lambda: bool(Holding.n_held))

        answer = client.post("/admin/drain")

        ready, refused = client.get("/ready"), client.post("/v1" + PREDICT, json=BODY)
        listed = client.get("/admin/models").json()
        Holding.may_go.set()
        text = held.result(15).text

    assert answer.json() == {"status": "draining", "in_flight": 1}
    error_of(refused, 503, "draining")
    assert ready.status_code == 503
    assert listed["is_draining"] is True
    assert text == "one"


def test_flags_are_read_and_switched(client: TestClient) -> None:
    before = client.get("/admin/flags/beta").json()
    switched = [
        client.put("/admin/flags/beta", json={"value": value}).json() for value in (True, "25%")
    ]

    assert before == {"value": False}
    assert switched == [{"value": True}, {"value": "25%"}]
    assert client.get("/admin/flags").json() == {"flags": {"beta": "25%"}}


def test_a_flag_that_is_not_there_or_cannot_be_is_refused(client: TestClient) -> None:
    error_of(client.get("/admin/flags/alpha"), 404, "not_found")
    error_of(client.put("/admin/flags/alpha", json={"value": True}), 404, "not_found")
    error_of(client.put("/admin/flags/beta", json={"value": "much"}), 422, "invalid_input")
    assert client.get("/admin/flags/beta").json() == {"value": False}


def test_openapi_shows_the_routes_and_their_bodies(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()

    paths = schema["paths"]
    shown = {(m.upper(), p) for p, item in paths.items() for m in item if p.startswith("/admin")}
    named = {
        (m, p.replace("/m/v1", "/{name}/{version}").replace("/m/", "/{name}/")) for m, p in ROUTES
    }
    assert shown == {(m, p.replace("/beta", "/{name}")) for m, p in named}
    put = paths["/admin/models/{name}/weights"]["put"]
    assert put["tags"] == ["admin"]
    assert put["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "TrafficBody"
    )
    assert {"400", "404", "409", "413", "415", "422"} <= put["responses"].keys()


def test_the_routes_stand_below_the_prefix_of_an_application_of_yours() -> None:
    app = FastAPI()
    with_admin().install(app, prefix="/ml")

    with TestClient(app, headers=ADMIN) as client:
        answers = [client.get("/ml/admin/models"), client.get("/admin/models")]

    assert [answer.status_code for answer in answers] == [200, 404]


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlserve")
