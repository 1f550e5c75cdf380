"""`mlserve run --workers 2`: two HTTP processes that share one replica."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGSTOP, SIGTERM

import httpx2
import pytest
from tests.cli.projects import Served, serving
from tests.cli.sharing import (
    Asking,
    children_of,
    client_of_each,
    is_alive,
    kill,
    mixed,
    pid_of,
    pids_that,
    running_script,
    sharing,
    statistics_of,
    write_shared_project,
)
from tests.http.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shared_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """A server that no test kills anything of."""
    with sharing(folder, DIR=folder) as found:
        yield found


@pytest.fixture
def clients(served: Served) -> Iterator[list[httpx2.Client]]:
    """A client of each of its HTTP processes."""
    with client_of_each(served) as found:
        until(lambda: all(client.get("/ready").status_code == 200 for client in found.values()))
        yield list(found.values())


def test_requests_reach_both_processes_and_one_replica(
    served: Served, clients: list[httpx2.Client]
) -> None:
    answers = [mixed(client, "a").json() for client in clients]

    assert answers == [["a"], ["a"]]
    assert len({pid_of(client) for client in clients}) == 2
    assert len(pids_that(served, "load mix")) == 1
    assert len(children_of(served.process.pid)) == 3


def test_where_it_serves_is_said_once(served: Served, clients: list[httpx2.Client]) -> None:
    lines = [line for line in served.lines if "Serving on" in line]

    assert len(lines) == 1
    assert "with 2 HTTP processes" in lines[0]


def test_batches_mix_the_requests_of_both_processes(
    folder: Path, served: Served, clients: list[httpx2.Client]
) -> None:
    texts = [f"{name}{number}" for name in "ab" for number in range(4)]
    with ThreadPoolExecutor(9) as pool:
        held = pool.submit(mixed, clients[0], "go-mix")
        served.wait_for("waiting for go-mix")
        asked = [pool.submit(mixed, clients[text[0] == "b"], text) for text in texts]
        until(lambda: statistics_of(clients[0])["in_flight"] == 9)
        (folder / "go-mix").touch()
        answers = [future.result().json() for future in asked]

    assert held.result().json() == ["go-mix"]
    assert answers == [texts] * 8


def test_statistics_are_those_of_all_processes_in_each(clients: list[httpx2.Client]) -> None:
    before = statistics_of(clients[0])["requests"]
    for client in clients:
        for _ in range(3):
            mixed(client, "a")

    # What batches there were is told a moment after the answers.
    until(lambda: statistics_of(clients[0]) == statistics_of(clients[1]))
    found = statistics_of(clients[1])
    assert found["requests"] == before + 6
    assert found["in_flight"] == 0


def test_connections_are_shared_out_evenly(served: Served, clients: list[httpx2.Client]) -> None:
    pids = []
    with ThreadPoolExecutor(16) as pool:
        more = [served.client() for _ in range(16)]
        pids = list(pool.map(pid_of, more))
        for client in more:
            client.close()

    counts = [pids.count(pid) for pid in set(pids)]
    assert len(counts) == 2
    assert min(counts) >= 4


def test_a_reload_is_refused_with_what_to_do(clients: list[httpx2.Client]) -> None:
    for client in clients:
        assert "Restart the server" in client.post("/reload").json()


def status_of(client: httpx2.Client) -> int:
    """Ask, and give the status of the answer."""
    return mixed(client, "a").status_code


def test_a_killed_replica_costs_no_request(folder: Path) -> None:
    with sharing(folder) as served, client_of_each(served) as clients:
        until(lambda: all(c.get("/ready").status_code == 200 for c in clients.values()))
        asking = [
            Asking(partial(status_of, client)) for client in clients.values() for _ in range(3)
        ]
        for one in asking:
            one.wait_for_more()
        kill(pids_that(served, "load mix")[0])
        until(lambda: len(pids_that(served, "load mix")) == 2)
        for one in asking:
            one.wait_for_more()
            one.end()
        pids = {pid_of(client) for client in clients.values()}

    assert {answer for one in asking for answer in one.answers} == {200}
    assert [one.problem for one in asking] == [None] * 6
    assert pids == clients.keys()


def test_a_killed_process_is_replaced_and_the_others_go_on(folder: Path) -> None:
    with sharing(folder) as served, client_of_each(served) as clients:
        until(lambda: all(c.get("/ready").status_code == 200 for c in clients.values()))
        (killed, lost), (left, client) = clients.items()
        other = Asking(partial(status_of, client))
        mixed(lost, "a")
        other.wait_for_more()
        kill(killed)
        with pytest.raises(httpx2.TransportError):
            pid_of(lost)
        other.wait_for_more()
        with client_of_each(served) as now:
            (new,) = now.keys() - {left}
            until(lambda: now[new].get("/ready").status_code == 200)
            other.end()
            figures = [statistics_of(each) for each in now.values()]
            answer = mixed(now[new], "a")
        line = served.wait_for("worker.died")

    assert (other.problem, set(other.answers)) == (None, {200})
    assert answer.json() == ["a"]
    assert new not in clients
    assert figures[0] == figures[1]
    assert figures[0]["requests"] == len(other.answers) + 1
    assert f'"pid": {killed}' in line
    assert len(pids_that(served, "load mix")) == 1


def test_a_process_that_was_killed_amid_requests_leaves_nothing_in_flight(folder: Path) -> None:
    with (
        sharing(folder, DIR=folder) as served,
        client_of_each(served) as clients,
        client_of_each(served) as others,
        ThreadPoolExecutor(2) as pool,
    ):
        until(lambda: all(c.get("/ready").status_code == 200 for c in clients.values()))
        (killed, lost), (left, other) = clients.items()
        client = others[left]  # one connection each: a further one may lead anywhere
        held = pool.submit(mixed, lost, "go-killed")
        served.wait_for("waiting for go-killed")
        kept = pool.submit(mixed, other, "b")
        until(lambda: statistics_of(client)["in_flight"] == 2)
        kill(killed)
        until(lambda: statistics_of(client)["in_flight"] == 1)
        (folder / "go-killed").touch()
        answer = kept.result()
        until(lambda: statistics_of(client)["in_flight"] == 0)

    assert isinstance(held.exception(), httpx2.TransportError)
    assert answer.json() == ["b"]


def test_a_process_that_is_stopped_is_replaced(folder: Path) -> None:
    with sharing(folder) as served:
        with client_of_each(served) as clients:
            stopped = next(iter(clients))
        kill(stopped, SIGSTOP)
        until(lambda: not is_alive(stopped))
        with client_of_each(served) as now:
            assert stopped not in now


def is_listening(address: tuple[str, int]) -> bool:
    """Say whether connections are taken."""
    try:
        socket.create_connection(address, 10).close()
    except ConnectionError:
        return False
    return True


def asked_once(address: tuple[str, int]) -> bytes | None:
    """Ask on a connection of its own; `None` = it was not made, and nothing was sent."""
    body = b'"a"'
    try:
        connection = socket.create_connection(address, 10)
    except ConnectionError:
        return None
    with connection:
        connection.sendall(
            b"POST /v1/models/mix/predict HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        received = b""
        while data := connection.recv(65_536):
            received += data
    return received.partition(b"\r\n")[0]


@pytest.mark.parametrize("grace_s", ["0", "0.5"])
def test_sigterm_under_load_costs_no_request_and_leaves_no_process(
    folder: Path, grace_s: str
) -> None:
    """Whoever comes between the last look at the queue and its close is reset: hardly anybody."""
    attempts = (stopped_under_load(folder, grace_s) for _ in range(3))

    assert any(problems == [None] * 6 for problems in attempts)


def stopped_under_load(folder: Path, grace_s: str) -> list[Exception | None]:
    """Stop a server that six clients ask, look what is left, and say what they met."""
    with sharing(folder, MLSERVE_DRAIN_GRACE_S=grace_s) as served:
        address = served.address()
        until(lambda: asked_once(address) == b"HTTP/1.1 200 OK")
        children = children_of(served.process.pid)
        asking = [Asking(lambda: asked_once(address)) for _ in range(6)]
        for one in asking:
            one.wait_for_more(20)
        served.process.send_signal(SIGTERM)
        code = served.exit_code()
        for one in asking:
            one.end()
        (pid,) = pids_that(served, "unload mix")

    answers = {answer for one in asking for answer in one.answers}
    assert b"HTTP/1.1 200 OK" in answers
    assert answers <= {b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Service Unavailable", None}
    assert code == 0
    assert len(children) == 3
    assert pid in children
    assert not any(is_alive(child) for child in children)
    assert sum("Stopping" in line for line in served.lines) == 1
    return [one.problem for one in asking]


def test_ctrl_c_in_a_terminal_stops_it_too(folder: Path) -> None:
    with sharing(folder) as served:
        served.address()
        served.process.send_signal(SIGINT)
        code = served.exit_code()

    assert code == 0
    assert len(pids_that(served, "unload mix")) == 1


def test_both_processes_say_at_once_that_they_stop(folder: Path) -> None:
    with sharing(folder, MLSERVE_DRAIN_GRACE_S="30") as served:
        with client_of_each(served) as clients:
            served.process.send_signal(SIGTERM)
            until(lambda: all(c.get("/ready").status_code == 503 for c in clients.values()))
            codes = [c.get("/ready").json()["error"]["code"] for c in clients.values()]
            answers = [mixed(client, "a").status_code for client in clients.values()]
            served.process.send_signal(SIGTERM)
        code = served.exit_code()

    assert codes == ["draining"] * 2
    assert answers == [200, 200]
    assert code == 0


def test_a_second_signal_ends_the_drain_at_once(folder: Path) -> None:
    with (
        sharing(folder, DIR=folder) as served,
        client_of_each(served) as clients,
        ThreadPoolExecutor(2) as pool,
    ):
        asked = [pool.submit(mixed, client, "go-never") for client in clients.values()]
        served.wait_for("waiting for go-never")
        address = served.address()
        served.process.send_signal(SIGTERM)
        until(lambda: not is_listening(address))
        signalled_at = time.monotonic()
        served.process.send_signal(SIGTERM)
        answers = [future.result() for future in asked]
        code = served.exit_code()
        took_s = time.monotonic() - signalled_at

    assert [answer.json()["error"]["code"] for answer in answers] == ["draining"] * 2
    assert code == 0
    assert took_s < 6


def test_a_third_signal_kills(folder: Path) -> None:
    with sharing(folder, DIR=folder) as served, served.client() as client:
        asking = Asking(lambda: client.get("/block"))
        served.wait_for("blocked")
        children = children_of(served.process.pid)
        for _ in range(2):
            served.process.send_signal(SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                served.process.wait(0.5)
        served.process.send_signal(SIGTERM)
        code = served.exit_code()
        until(lambda: not any(is_alive(child) for child in children), 2)
        asking.end()

    assert code == -SIGTERM


@pytest.mark.parametrize("busy", [False, True])
def test_nothing_outlives_the_main_process(folder: Path, busy: bool) -> None:
    with sharing(folder, DIR=folder) as served, client_of_each(served) as clients:
        until(lambda: all(c.get("/ready").status_code == 200 for c in clients.values()))
        pool = ThreadPoolExecutor(2)
        if busy:
            pool.submit(mixed, next(iter(clients.values())), "go-never")
            served.wait_for("waiting for go-never")
        children = children_of(served.process.pid)
        served.process.send_signal(SIGKILL)
        served.process.wait(5)
        until(lambda: not any(is_alive(child) for child in children), 2)
        pool.shutdown()

    assert len(children) == 3


def readiness(client: httpx2.Client) -> tuple[int, str]:
    """Give what `/ready` says: its status and the model's state."""
    answer = client.get("/ready")
    return answer.status_code, answer.json()["models"][0]["state"]


def test_each_process_is_ready_only_once_the_model_is_loaded(folder: Path) -> None:
    environment = {"LOADED": "go-loaded", "MLSERVE_STARTUP_WAIT_S": "0"}
    with sharing(folder, DIR=folder, **environment) as served, client_of_each(served) as clients:
        served.wait_for("waiting for go-loaded")
        before = [readiness(client) for client in clients.values()]
        refused = [mixed(client, "a").status_code for client in clients.values()]
        (folder / "go-loaded").touch()
        until(lambda: all(readiness(client)[0] == 200 for client in clients.values()))
        answers = [mixed(client, "a").status_code for client in clients.values()]

    assert before == [(503, "loading")] * 2
    assert refused == [503, 503]
    assert answers == [200, 200]


def test_a_model_that_cannot_be_loaded_ends_everything_with_3_and_the_reason(
    folder: Path,
) -> None:
    with sharing(folder, FAIL="load") as served:
        code = served.exit_code()
        (loaded,) = pids_that(served, "load mix")

    assert code == 3
    assert not is_alive(loaded)
    assert pids_that(served, "unload mix") == [loaded]
    assert sum("model.load.failed" in line for line in served.lines) == 1
    assert "There are no weights." in served.wait_for("model.load.failed")
    assert not any(is_alive(pid) for pid in children_of(served.process.pid))


def test_a_model_that_cannot_be_loaded_is_only_reported_where_others_are_to_be_served(
    folder: Path,
) -> None:
    environment = {"MLSERVE_ON_LOAD_FAILURE": "serve", "MLSERVE_STARTUP_WAIT_S": "0"}
    with sharing(folder, FAIL="load", **environment) as served, client_of_each(served) as clients:
        until(lambda: all(readiness(c) == (503, "failed") for c in clients.values()))
        answer = next(iter(clients.values())).get("/ready").json()
        killed, left = clients
        kill(killed)
        until(lambda: not is_alive(killed))
        with client_of_each(served) as now:
            (new,) = now.keys() - {left}
            until(lambda: readiness(now[new]) == (503, "failed"))
        served.process.send_signal(SIGTERM)
        code = served.exit_code()

    assert answer["models"][0]["reason"] == "loading failed with OSError"
    assert code == 0


def test_a_process_that_cannot_start_ends_everything_with_3_and_the_reason(folder: Path) -> None:
    with sharing(folder, FAIL="import", FIRST=str(os.getpid())) as served:
        code = served.exit_code()

    assert code == 3
    assert "This cannot be imported twice." in served.wait_for("worker.start.failed")
    assert served.wait_for("An HTTP process could not start (exit code 3).")


def test_a_model_in_threads_that_fails_ends_everything_with_3(folder: Path) -> None:
    with sharing(folder, "shared:copied", FAIL="load") as served:
        code = served.exit_code()

    assert code == 3
    assert served.wait_for("There are no weights.")


def test_a_port_that_is_taken_ends_the_start_with_3_before_anything_is_loaded(
    folder: Path, served: Served
) -> None:
    _, port = served.address()
    with serving(folder, "shared:server", "--workers", "2", port=port) as second:
        code = second.exit_code()

    assert code == 3
    assert second.wait_for("address already in use")
    assert pids_that(second, "load mix") == []


def test_models_in_threads_are_copied_which_a_warning_says(folder: Path) -> None:
    with sharing(folder, "shared:copied") as served, client_of_each(served) as clients:
        until(lambda: len(pids_that(served, "load copied")) == 2)
        answers = [client.get("/ready").status_code for client in clients.values()]
        line = served.wait_for("loads a copy")
        served.process.send_signal(SIGTERM)
        code = served.exit_code()

    assert "`copied`" in line
    assert "placement='process'" in line
    assert answers == [200, 200]
    assert sorted(pids_that(served, "unload copied")) == sorted(clients)
    assert code == 0


def test_a_script_serves_with_several_processes(folder: Path) -> None:
    with running_script(folder, "guarded.py") as served:
        with served.client() as client:
            until(lambda: client.get("/ready").status_code == 200)
            answer = client.post("/v1/models/shout/predict", json={"text": "a"})
            children = children_of(served.process.pid)
        served.process.send_signal(SIGTERM)
        code = served.exit_code()

    assert answer.json() == {"text": "A"}
    assert len(children) == 3
    assert code == 0


def test_a_script_that_would_serve_when_it_is_imported_is_told_so(folder: Path) -> None:
    with running_script(folder, "unguarded.py") as served:
        code = served.exit_code()

    assert code == 3
    assert "if __name__ == '__main__'" in served.wait_for("worker.start.failed")
