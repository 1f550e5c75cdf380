"""What replicas in processes of their own count is shown by the process that speaks HTTP."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from fastapi import Depends
from tests.http.waiting import until
from tests.observability.reading import Scrape, scrape
from tests.processes.counting import Counting
from tests.processes.serving import QUICK

from mlserve import Batching, ModelServer, Replicas, rate_limit
from mlserve.observability.exposition import shared_directory
from mlserve.testing import running

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/counting/predict"
STREAM = "/v1/models/counting/stream"
LABELS = {"model": "counting", "version": "v1"}


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    placed = Replicas(placement="process", restart=QUICK)
    server = ModelServer().add("counting", Counting, replicas=placed, batching=Batching(max_size=1))
    with running(server) as client:
        yield client


def counted(client: httpx2.Client, name: str, **labels: str) -> float:
    return scrape(client).value(name, **LABELS, **labels) or 0.0


def gauges(found: Scrape) -> list[float | None]:
    names = ("mlserve_requests_in_flight", "mlserve_queue_depth")
    return [found.value(name, **LABELS) for name in names]


def test_batches_starts_and_tokens_of_a_replica_are_shown(client: httpx2.Client) -> None:
    before = scrape(client)
    answers = [client.post(PREDICT, json="") for _ in range(5)]
    after = scrape(client)

    def added(name: str, **labels: str) -> float:
        return (after.value(name, **LABELS, **labels) or 0) - (
            before.value(name, **LABELS, **labels) or 0
        )

    assert [answer.status_code for answer in answers] == [200] * 5
    assert added("mlserve_requests_total", code="ok") == 5
    assert added("mlserve_batch_size_count") == 5
    assert added("mlserve_batch_size_sum") == 5
    assert added("mlserve_tokens_total", kind="prompt") == 15
    assert added("mlserve_stage_duration_seconds_count", stage="infer") == 5
    assert before.value("mlserve_replica_starts_total", **LABELS) == 1


def test_what_a_handler_counts_in_its_process_is_shown(client: httpx2.Client) -> None:
    before = scrape(client).value("test_replica_handled_total", what="batch") or 0
    pid = client.post(PREDICT, json="").json()["pid"]
    found = scrape(client)

    assert found.value("test_replica_handled_total", what="batch") == before + 1
    assert found.value("test_replica_loaded", pid=str(pid)) == 1


def test_the_death_of_a_replica_loses_no_count_and_leaves_nothing_in_the_gauges(
    client: httpx2.Client, tmp_path: Path
) -> None:
    pid = client.post(PREDICT, json="").json()["pid"]
    before = scrape(client)
    held = threading.Thread(
        target=client.post, args=(PREDICT,), kwargs={"json": f"hold {tmp_path}/held"}
    )
    held.start()
    until((tmp_path / "held").exists)
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "held.go").touch()
    held.join(15)

    until(lambda: gauges(scrape(client)) == [0, 0])
    after = scrape(client)
    name, n = "mlserve_requests_total", before.total("mlserve_requests_total", **LABELS)
    assert after.total(name, **LABELS) == n + 1
    name = "mlserve_batch_size_count"
    assert after.value(name, **LABELS) == (before.value(name, **LABELS) or 0) + 1
    name = "mlserve_replica_starts_total"
    assert after.value(name, **LABELS) == (before.value(name, **LABELS) or 0) + 1
    assert after.value("test_replica_loaded", pid=str(pid)) is None
    assert after.value("mlserve_replicas", **LABELS) == 1


def test_the_tokens_of_a_stream_that_was_left_are_counted_and_charged(tmp_path: Path) -> None:
    placed = Replicas(placement="process", restart=QUICK)
    limit = [Depends(rate_limit("100/minute", cost="tokens"))]
    server = ModelServer().add("counting", Counting, replicas=placed, dependencies=limit)

    with running(server) as client:
        before = counted(client, "mlserve_tokens_total", kind="prompt")
        n_left = counted(client, "mlserve_requests_total", code="client_closed_request")
        with client.stream("POST", STREAM, json=f"; hold {tmp_path}/held") as answer:
            assert next(answer.iter_lines())
        until(
            lambda: counted(client, "mlserve_requests_total", code="client_closed_request") > n_left
        )
        n_tokens = counted(client, "mlserve_tokens_total", kind="prompt") - before
        (tmp_path / "held.go").touch()
        limit_left = client.post(PREDICT, json="").headers["ratelimit"]

    assert n_tokens == 3
    assert limit_left.startswith('"100/minute";r=97;')


def leave(client: httpx2.Client, path: str, order: str, **headers: str) -> None:
    with suppress(httpx2.ReadTimeout):
        client.post(path, json=order, headers=headers, timeout=0.3)


def left_while_running(client: httpx2.Client, held: str) -> None:
    leave(client, PREDICT, held)


def left_while_queued(client: httpx2.Client, held: str) -> None:
    leave(client, PREDICT, held)
    leave(client, PREDICT, "")


def deadline_while_running(client: httpx2.Client, held: str) -> None:
    answer = client.post(PREDICT, json=held, headers={"X-Request-Timeout": "0.2"})
    assert answer.status_code == 504


def left_before_the_first_chunk(client: httpx2.Client, held: str) -> None:
    leave(client, STREAM, held)


def left_while_streaming(client: httpx2.Client, held: str) -> None:
    with client.stream("POST", STREAM, json=f"; {held}") as answer:
        assert answer.status_code == 200


def deadline_while_streaming(client: httpx2.Client, held: str) -> None:
    answer = client.post(STREAM, json=f"; {held}", headers={"X-Request-Timeout": "0.2"})
    assert "deadline_exceeded" in answer.text


@pytest.mark.parametrize(
    "end",
    [
        left_while_running,
        left_while_queued,
        deadline_while_running,
        left_before_the_first_chunk,
        left_while_streaming,
        deadline_while_streaming,
    ],
)
def test_the_gauges_are_zero_again_however_a_request_has_ended(
    client: httpx2.Client, tmp_path: Path, end: Callable[[httpx2.Client, str], None]
) -> None:
    end(client, f"hold {tmp_path}/held")
    (tmp_path / "held.go").touch()

    until(lambda: gauges(scrape(client)) == [0, 0])
    assert client.post(PREDICT, json="").status_code == 200


def test_the_files_do_not_grow_in_number_with_the_processes_that_end(client: httpx2.Client) -> None:
    def kill_one() -> None:
        pid = client.post(PREDICT, json="").json()["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: client.post(PREDICT, json="").json()["pid"] != pid)

    kill_one()
    files = len(list(Path(shared_directory()).glob("*.db")))
    for _ in range(3):
        kill_one()

    until(lambda: len(list(Path(shared_directory()).glob("*.db"))) <= files)
