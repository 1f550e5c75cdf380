"""Feature flags in endpoints and before models, switched while the server runs."""

import json
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from tests.http.answers import error_of

from mlserve import (
    ConfigurationError,
    ModelServer,
    ServerSettings,
    api_keys,
    feature_flag,
    require_flag,
)
from mlserve.processes.boot import IN_REPLICA
from mlserve.testing import EchoHandler

PREDICT = "/v1/models/echo/predict"
HELLO = {"text": "hello"}
KEYS = [f"{name}=a-good-key-of-caller-{name}" for name in "abcdefgh"]


def flagged(**flags: bool | str) -> ModelServer:
    server = ModelServer(settings=ServerSettings(flags=flags))
    return server.add("echo", EchoHandler, dependencies=[Depends(require_flag("beta"))])


def with_endpoint(server: ModelServer) -> FastAPI:
    app = server.build()

    @app.get("/greeting")
    async def greeting(beta: Annotated[bool, Depends(feature_flag("beta"))]) -> str:
        return "new" if beta else "old"

    return app


def test_a_model_behind_a_flag_that_is_off_is_not_there() -> None:
    server = flagged(beta=False)
    with TestClient(server.build()) as client:
        off = client.post(PREDICT, json=HELLO)
        server.flags.set("beta", True)
        on = client.post(PREDICT, json=HELLO)
        server.flags.set("beta", False)
        off_again = client.post(PREDICT, json=HELLO)

    error_of(off, 404, "not_found")
    assert on.json() == HELLO
    error_of(off_again, 404, "not_found")


def test_an_endpoint_is_told_whether_a_flag_is_on() -> None:
    server = flagged(beta=False)
    with TestClient(with_endpoint(server)) as client:
        off = client.get("/greeting").json()
        server.flags.set("beta", True)
        on = client.get("/greeting").json()

    assert (off, on) == ("old", "new")


def test_the_flags_are_at_the_application_too() -> None:
    server = flagged(beta=True)
    mine = FastAPI()
    other = flagged(beta="10%")
    other.install(mine)

    assert server.build().state.flags is server.flags
    assert mine.state.flags.list() == {"beta": "10%"}


def test_a_share_of_callers_gets_a_flag_always_the_same_ones() -> None:
    keys = api_keys(KEYS)
    server = ModelServer(
        settings=ServerSettings(flags={"beta": "50%"}), dependencies=[Depends(keys)]
    )
    app = server.build()

    @app.get("/greeting", dependencies=[Depends(keys)])
    async def greeting(beta: Annotated[bool, Depends(feature_flag("beta"))]) -> bool:
        return beta

    with TestClient(app) as client:

        def ask() -> list[bool]:
            sent = [{"X-API-Key": entry.partition("=")[2]} for entry in KEYS]
            return [client.get("/greeting", headers=headers).json() for headers in sent]

        first, second = ask(), ask()
        server.flags.set("beta", "100%")
        third = ask()

    assert first == second
    assert set(first) == {True, False}
    assert third == [True] * len(KEYS)


def test_flags_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"slow": True}))
    monkeypatch.setenv("MLSERVE_FLAGS", '{"beta": true, "fast": "25%", "slow": false}')
    monkeypatch.setenv("MLSERVE_FLAGS_FILE", str(path))

    assert ModelServer().flags.list() == {"beta": True, "fast": "25%", "slow": True}


def test_one_flag_may_have_a_variable_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLSERVE_FLAGS__BETA", "true")

    assert ModelServer().flags.list() == {"beta": True}


def test_an_unknown_flag_of_a_model_is_refused_at_build() -> None:
    with pytest.raises(ConfigurationError, match="no flag 'beta'; there are: alpha"):
        flagged(alpha=True).build()
    with pytest.raises(ConfigurationError, match="no flag 'beta'; there are: none"):
        flagged().install(FastAPI())


def test_an_unknown_flag_deep_in_dependencies_is_refused_at_build() -> None:
    def outer(_: Annotated[bool, Depends(feature_flag("deep"))]) -> None:
        """Depends on a flag."""

    with pytest.raises(ConfigurationError, match="no flag 'deep'"):
        ModelServer(dependencies=[Depends(outer)]).add("echo", EchoHandler).build()


def test_an_unknown_flag_of_an_endpoint_is_refused_at_the_start() -> None:
    app = with_endpoint(ModelServer().add("echo", EchoHandler))

    with pytest.raises(ConfigurationError, match="no flag 'beta'"), TestClient(app):
        pass


def test_a_malformed_flag_is_refused_when_the_server_is_made() -> None:
    with pytest.raises(ConfigurationError, match="'beta' must be true, false or a share"):
        flagged(beta="often")


def test_what_callers_cannot_be_told_apart_by_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`by` must"):
        feature_flag("beta", by="cookie")  # type: ignore[arg-type]  # that is what is tested


def test_the_process_of_a_replica_needs_neither_keys_nor_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It imports the module of the server, without the server's settings."""
    monkeypatch.chdir(tmp_path)
    IN_REPLICA.set()
    try:
        server = flagged()
        keys = api_keys()
        server.build()
    finally:
        IN_REPLICA.clear()
    app = FastAPI(dependencies=[Depends(keys)])
    app.add_api_route("/", lambda: None)

    with TestClient(app) as client:
        answer = client.get("/", headers={"X-API-Key": "anything-that-is-long"})

    assert answer.status_code == 401
