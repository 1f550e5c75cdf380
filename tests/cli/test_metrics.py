"""`mlserve run --workers 2`: each of the processes shows what all of them have counted."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from signal import SIGKILL

import httpx2
import pytest
from tests.cli.projects import Served
from tests.cli.sharing import client_of_each, kill, pid_of, sharing
from tests.http.waiting import until
from tests.observability.reading import Scrape, scrape

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

PROJECT = """
import os
from collections.abc import Iterator

from prometheus_client import Counter

from mlserve import ModelHandler, ModelServer, Replicas

SHOUTED = Counter("shouted", "Texts that were shouted.")


class Shout(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        SHOUTED.inc(len(inputs))
        if "bad" in inputs:
            raise RuntimeError("This text is bad.")
        return [text.upper() for text in inputs]

    def stream(self, item: str) -> Iterator[str]:
        yield from item


server = (
    ModelServer()
    .add("apart", Shout, replicas=Replicas(placement="process"))
    .add("within", Shout)
)
app = server.build()


@app.get("/pid")
async def pid() -> int:
    return os.getpid()
"""
GAUGES = ("mlserve_requests_in_flight", "mlserve_queue_depth")
COUNTS: dict[str, tuple[str, dict[str, str]]] = {
    "ok": ("mlserve_requests_total", {"code": "ok"}),
    "invalid": ("mlserve_requests_total", {"code": "validation_error"}),
    "broken": ("mlserve_requests_total", {"code": "model_error"}),
    "batched": ("mlserve_batch_size_sum", {}),
    "first chunks": ("mlserve_time_to_first_chunk_seconds_count", {}),
    "further chunks": ("mlserve_time_between_chunks_seconds_count", {}),
}
MODELS = ("apart", "within")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("counted")
    (folder / "shared.py").write_text(PROJECT, encoding="utf-8")
    with sharing(folder) as found:
        yield found


@pytest.fixture
def clients(served: Served) -> Iterator[dict[int, httpx2.Client]]:
    """A client of each HTTP process, by its number."""
    with client_of_each(served) as found:
        until(lambda: all(client.get("/ready").status_code == 200 for client in found.values()))
        yield found


SENT = {
    "ok": 15,
    "invalid": 3,
    "broken": 3,
    "batched": 15,
    "first chunks": 3,
    "further chunks": 6,
}


def asked(client: httpx2.Client, model: str) -> None:
    """Send seven requests of three outcomes."""
    for _ in range(4):
        assert client.post(f"/v1/models/{model}/predict", json="a").status_code == 200
    assert client.post(f"/v1/models/{model}/predict", json=1).status_code == 422
    assert client.post(f"/v1/models/{model}/predict", json="bad").status_code == 500
    assert client.post(f"/v1/models/{model}/stream", json="abc").status_code == 200


def has_replicas(client: httpx2.Client, model: str, n: int) -> bool:
    return scrape(client).value("mlserve_replicas", model=model, version="v1") == n


@pytest.mark.parametrize("model", MODELS)
def test_the_counts_of_both_processes_together_are_what_was_sent(
    clients: dict[int, httpx2.Client], model: str
) -> None:
    first, second = clients.values()
    labels = {"model": model, "version": "v1"}
    before = scrape(first)
    for client in (first, second, second):
        asked(client, model)

    for client in (first, second):
        until(lambda client=client: added(before, scrape(client), labels) == SENT)  # type: ignore[misc]


def added(before: Scrape, after: Scrape, labels: dict[str, str]) -> dict[str, float]:
    return {
        key: (after.value(name, **labels, **more) or 0)
        - (before.value(name, **labels, **more) or 0)
        for key, (name, more) in COUNTS.items()
    }


def test_what_handlers_count_is_added_up_over_all_processes(
    clients: dict[int, httpx2.Client],
) -> None:
    first, second = clients.values()
    before = scrape(first).value("shouted_total") or 0
    for client in (first, second):
        for model in MODELS:
            client.post(f"/v1/models/{model}/predict", json="a")

    assert scrape(first).value("shouted_total") == before + 4
    assert scrape(second).value("shouted_total") == before + 4


def test_the_gauges_count_shared_replicas_once_and_own_ones_each(
    clients: dict[int, httpx2.Client],
) -> None:
    for client in clients.values():
        until(partial(has_replicas, client, "within", 2))
        found = scrape(client)
        assert found.value("mlserve_replicas", model="apart", version="v1") == 1
        for model in MODELS:
            assert found.value("mlserve_model_ready", model=model, version="v1") == 1
            assert [found.value(name, model=model, version="v1") for name in GAUGES] == [0, 0]


def test_an_http_process_that_dies_leaves_its_counts_and_takes_its_gauges_along(
    served: Served, clients: dict[int, httpx2.Client]
) -> None:
    (pid, client), (_, other) = clients.items()
    labels = {"model": "within", "version": "v1"}
    before = scrape(other).total("mlserve_requests_total", **labels) + 7
    asked(client, "within")
    # What a process has counted is with the others within a tenth of a second.
    until(lambda: scrape(other).total("mlserve_requests_total", **labels) == before)

    kill(pid, SIGKILL)
    with client_of_each(served) as renewed:
        assert pid not in renewed
        until(partial(has_replicas, other, "within", 2))
        found = scrape(other)

    assert pid_of(other) != pid
    assert found.total("mlserve_requests_total", **labels) == before
    assert found.value("mlserve_requests_in_flight", **labels) == 0
