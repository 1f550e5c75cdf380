"""Guards on a route that is reached past FastAPI's stack, and on one that is not."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

from mlserve import ModelHandler, ModelServer, ServerSettings, api_keys, rate_limit
from mlserve.http.guards import require_flag
from mlserve.http.lean import ServingApp

INFER, ADMIN = "infer-key-of-32-characters-or-so", "admin-key-of-32-characters-or-so"
ENTRIES = [f"caller={INFER}", f"boss:admin={ADMIN}"]
PREDICT = "/v1/models/m/predict"


class Echo(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


async def theirs() -> None:
    """A dependency of the user, for which FastAPI is needed."""


Make = Callable[..., FastAPI]


@pytest.fixture(params=["short way", "behind the stack"])
def make(request: pytest.FixtureRequest) -> Make:
    more = [] if request.param == "short way" else [Depends(theirs)]

    def build(*guards: Any, **settings: Any) -> FastAPI:
        server = ModelServer(
            settings=ServerSettings(**settings), dependencies=[*map(Depends, guards), *more]
        )
        app = server.add("m", Echo).build()
        assert isinstance(app, ServingApp)
        with TestClient(app):
            assert (app.lean_route(scope_of(app)) is None) == bool(more)
        return app

    return build


def scope_of(app: FastAPI) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": PREDICT, "root_path": "", "app": app}


@pytest.fixture
def clients() -> Iterator[Callable[[FastAPI], TestClient]]:
    opened: list[TestClient] = []

    def enter(app: FastAPI) -> TestClient:
        opened.append(TestClient(app).__enter__())
        return opened[-1]

    yield enter
    for client in opened:
        client.__exit__(None, None, None)


def ask(client: TestClient, key: str | None = None) -> httpx2.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return client.post(PREDICT, json="a", headers=headers)


def test_only_a_good_key_passes(make: Make, clients: Callable[[FastAPI], TestClient]) -> None:
    client = clients(make(api_keys(ENTRIES)))

    none, wrong, other, good = (ask(client, key) for key in (None, "x" * 32, ADMIN, INFER))

    assert [none.status_code, wrong.status_code, other.status_code] == [401, 401, 403]
    assert none.headers["www-authenticate"] == "Bearer"
    assert none.json()["error"]["code"] == "unauthorized"
    assert none.json()["error"]["request_id"] == none.headers["x-request-id"]
    assert (good.status_code, good.json()) == (200, "a")


def test_a_limit_is_told_in_each_answer_and_kept(
    make: Make, clients: Callable[[FastAPI], TestClient]
) -> None:
    client = clients(make(api_keys(ENTRIES), rate_limit("2/hour")))

    answers = [ask(client, INFER) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    for answer in answers:
        assert answer.headers.get_list("ratelimit-policy") == ['"2/hour";q=2;w=3600']
    assert answers[2].headers["retry-after"]


def test_a_feature_that_is_off_is_not_there(
    make: Make, clients: Callable[[FastAPI], TestClient]
) -> None:
    app = make(require_flag("beta"), flags={"beta": False})
    client = clients(app)

    before = ask(client).status_code
    app.state.flags.set("beta", True)

    assert (before, ask(client).status_code) == (404, 200)


def test_a_guard_asked_for_twice_counts_once(
    make: Make, clients: Callable[[FastAPI], TestClient]
) -> None:
    limit = rate_limit("2/hour")
    client = clients(make(limit, limit))

    assert [ask(client).status_code for _ in range(3)] == [200, 200, 429]


def test_what_stands_in_the_place_of_a_guard_in_tests_is_called(
    make: Make, clients: Callable[[FastAPI], TestClient]
) -> None:
    guard = api_keys(ENTRIES)
    app = make(guard)
    app.dependency_overrides[guard] = lambda: "anybody"

    assert ask(clients(app)).status_code == 200


def test_a_body_is_not_read_before_the_guards_have_let_it_pass(
    make: Make, clients: Callable[[FastAPI], TestClient]
) -> None:
    client = clients(make(api_keys(ENTRIES)))

    answer = client.post(PREDICT, content=b"{", headers={"Content-Type": "application/json"})

    assert answer.status_code == 401
