"""Starting a server whose model fails or hangs, under `mlserve run` and under plain uvicorn."""

import time
from pathlib import Path
from signal import SIGTERM

import pytest
from tests.cli.projects import Served
from tests.cli.stopping import SERVERS, Server, write_slow_project
from tests.http.waiting import until

pytestmark = pytest.mark.slow

REASONS = {
    "load": "There are no weights.",
    "warmup": "There is no memory.",
    "example": "This is no example.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slow_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(params=["mlserve run", "uvicorn"])
def server(request: pytest.FixtureRequest) -> Server:
    return SERVERS[request.param]


def hooks_of(served: Served) -> list[str]:
    """Give the calls of `load` and `unload`, in their order."""
    return [line.split(",")[0] for line in served.lines if line.startswith(("load", "unload"))]


def test_a_slow_load_that_a_signal_overtakes_is_unloaded_once_it_returns(
    folder: Path, server: Server
) -> None:
    with server.serve(folder, LOAD_S="1", MLSERVE_STARTUP_WAIT_S="0") as served:
        served.address()
        served.wait_for("load quick")
        served.process.send_signal(SIGTERM)
        code = served.exit_code()

    assert hooks_of(served) == ["load quick\n", "unload quick"]
    assert code == server.sigterm_code


@pytest.mark.parametrize("wait_s", ["0", "inf"])
def test_a_load_that_hangs_does_not_hold_up_a_stop(
    folder: Path, server: Server, wait_s: str
) -> None:
    environment = {"MLSERVE_STARTUP_WAIT_S": wait_s, "MLSERVE_DRAIN_S": "0.5"}
    with server.serve(folder, LOAD_S="60", **environment) as served:
        if wait_s == "0":
            served.address()  # it listens while the model loads
        served.wait_for("load quick")
        signalled_at = time.monotonic()
        served.process.send_signal(SIGTERM)
        code = served.exit_code()
        took_s = time.monotonic() - signalled_at

    assert hooks_of(served) == ["load quick\n"]
    assert served.wait_for("model.unload.abandoned")
    assert code == server.sigterm_code
    assert took_s < 4


@pytest.mark.parametrize("stage", REASONS)
def test_a_model_that_fails_at_the_start_ends_the_process_with_3(
    folder: Path, server: Server, stage: str
) -> None:
    with server.serve(folder, "failing", FAIL=stage) as served:
        code = served.exit_code()

    assert code == 3
    assert served.wait_for(REASONS[stage])
    assert hooks_of(served) == ["load\n", "unload\n"]


def test_a_load_that_takes_too_long_ends_the_process_with_3_and_the_reason(
    folder: Path, server: Server
) -> None:
    with server.serve(folder, "failing", LOAD_S="0.6", MLSERVE_LOAD_TIMEOUT_S="0.2") as served:
        code = served.exit_code()

    assert code == 3
    assert served.wait_for("Load and warm-up took longer than 0.2 s.")
    assert hooks_of(served) == ["load\n", "unload\n"]


def test_a_load_that_hangs_is_only_reported_where_others_are_to_be_served(
    folder: Path, server: Server
) -> None:
    environment = {
        "LOAD_S": "60",
        "MLSERVE_LOAD_TIMEOUT_S": "0.2",
        "MLSERVE_ON_LOAD_FAILURE": "serve",
        "MLSERVE_STARTUP_WAIT_S": "0",
        "MLSERVE_DRAIN_S": "0.2",
    }
    with server.serve(folder, "failing", **environment) as served, served.client() as client:
        until(lambda: client.get("/ready").json()["models"][0]["state"] == "failed")
        ready, health = client.get("/ready"), client.get("/health")
        answer = client.post("/v1/models/m/predict", json="hello")
        served.process.send_signal(SIGTERM)
        code = served.exit_code()

    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "model_failed")
    assert ready.json()["models"][0]["reason"] == "loading failed with TimeoutError"
    assert health.status_code == 200
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_failed")
    assert code == server.sigterm_code


def test_a_port_that_is_taken_ends_the_process_with_3_and_unloads(
    folder: Path, server: Server
) -> None:
    with server.serve(folder) as first:
        _, port = first.address()
        with server.serve(folder, port=port) as second:
            code = second.exit_code()

    assert code == 3
    assert second.wait_for("address already in use")
    assert hooks_of(second) == ["load quick\n", "unload quick"]
