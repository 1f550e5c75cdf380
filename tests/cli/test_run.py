"""`mlserve run` as a process: start, signals, exit codes."""

import signal
import socket
import threading
from pathlib import Path

import httpx2
import pytest
from tests.cli.projects import run_command, serving, write_project
from tests.http.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


def accepts_connections(client: httpx2.Client) -> bool:
    try:
        socket.create_connection((client.base_url.host, client.base_url.port or 80), 1).close()
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize("target", ["reviews:server", "app:app"])
def test_a_server_or_an_application_is_served_until_sigterm(folder: Path, target: str) -> None:
    with serving(folder, target) as served:
        with served.client() as client:
            answer = client.post("/v1/models/shout/predict", json="hello")
            ready = client.get("/ready")
        served.process.send_signal(signal.SIGTERM)
        code = served.exit_code()

    assert answer.json() == "HELLO"
    assert ready.status_code == 200
    assert code == 0
    assert [line for line in served.lines if line in ("load\n", "unload\n")] == [
        "load\n",
        "unload\n",
    ]


def test_sigint_ends_it_too(folder: Path) -> None:
    with serving(folder, "reviews:server") as served:
        served.client().close()
        served.process.send_signal(signal.SIGINT)
        code = served.exit_code()

    assert code in (0, 130, -signal.SIGINT)
    assert "unload\n" in served.lines


def test_logs_are_one_json_object_a_line_where_no_person_looks_on(folder: Path) -> None:
    with serving(folder, "reviews:server") as served, served.client() as client:
        client.post("/v1/models/shout/predict", json="hello", headers={"X-Request-Id": "r-1"})
        line = served.wait_for('"request_id": "r-1"')

    assert line.startswith("{")
    assert '"logger": "mlserve.access"' in line
    assert "hello" not in line


def test_sigterm_lets_a_running_request_finish(folder: Path) -> None:
    answers: list[httpx2.Response] = []
    with serving(folder, "reviews:server", WAIT_S="0.5") as served:
        with served.client() as client:
            request = threading.Thread(
                target=lambda: answers.append(client.post("/v1/models/shout/predict", json="wait"))
            )
            request.start()
            served.wait_for("waiting")
            served.process.send_signal(signal.SIGTERM)
            request.join(10)
        code = served.exit_code()

    assert [answer.json() for answer in answers] == ["WAIT"]
    assert code == 0
    assert "unload\n" in served.lines


def test_what_is_not_finished_after_the_drain_gets_a_proper_end(folder: Path) -> None:
    events: list[str] = []
    with serving(folder, "reviews:server", MLSERVE_DRAIN_S="0.3") as served:
        begun = threading.Event()

        def read() -> None:
            with (
                served.client() as client,
                client.stream("POST", "/v1/models/shout/stream", json="x") as answer,
            ):
                for line in answer.iter_lines():
                    events.append(line)
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(10)
        served.process.send_signal(signal.SIGTERM)
        reader.join(10)
        code = served.exit_code()

    assert [event for event in events if event][-1] == "data: [DONE]"
    assert '"code": "draining"' in [event for event in events if event][-2]
    assert code == 0
    assert "unload\n" in served.lines


def test_ready_turns_false_before_the_socket_closes(folder: Path) -> None:
    with serving(folder, "reviews:server", MLSERVE_DRAIN_GRACE_S="5") as served:
        with served.client() as client:
            served.process.send_signal(signal.SIGTERM)
            served.wait_for("Stopping")
            ready = client.get("/ready")
            health = client.get("/health")
            answer = client.post("/v1/models/shout/predict", json="still")
        served.process.send_signal(signal.SIGTERM)
        code = served.exit_code()

    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
    assert health.status_code == 200
    assert answer.json() == "STILL"
    assert code == 0


def test_a_second_signal_ends_the_drain_at_once_and_the_model_is_still_unloaded(
    folder: Path,
) -> None:
    with serving(folder, "reviews:server") as served:
        with served.client() as client:
            stream = client.stream("POST", "/v1/models/shout/stream", json="x")
            with stream as answer:
                lines = answer.iter_lines()
                assert next(lines) == 'data: "x"'
                served.process.send_signal(signal.SIGTERM)
                until(lambda: not accepts_connections(client))
                served.process.send_signal(signal.SIGTERM)
                events = [line for line in lines if line]
        code = served.exit_code()

    assert code == 0
    assert events[-1] == "data: [DONE]"
    assert "unload\n" in served.lines


def test_a_model_that_cannot_be_loaded_ends_the_process_with_3(folder: Path) -> None:
    code, output, errors = run_command(folder, "run", "reviews:server", "--port", "0", FAIL="load")

    assert code == 3
    assert "There are no weights." in errors
    assert "unload" in output


def test_a_model_that_cannot_be_loaded_later_ends_the_process_with_3(folder: Path) -> None:
    code, output, errors = run_command(folder, "run", "reviews:late", "--port", "0")

    assert code == 3
    assert "There are no weights." in errors
    assert "unload" in output


def test_a_port_that_is_taken_ends_the_process_with_an_error(folder: Path) -> None:
    with serving(folder, "reviews:server") as served, served.client() as client:
        port = str(client.base_url.port)
        code, _, errors = run_command(folder, "run", "reviews:server", "--port", port)

    assert code not in (0, None)
    assert "address already in use" in errors


@pytest.mark.parametrize("option", [["--port", "70000"], ["--log-level", "loud"], ["--hots", "x"]])
def test_a_wrong_option_is_named(folder: Path, option: list[str]) -> None:
    code, _, errors = run_command(folder, "run", "reviews:server", *option)

    assert code == 2
    assert option[-1] in errors or option[0] in errors
