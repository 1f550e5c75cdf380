"""`mlserve run --workers 2`: what each HTTP process keeps for itself, as the documentation says."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.cli.sharing import client_of_each, sharing
from tests.http.waiting import until
from tests.observability.reading import scrape

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

PROJECT = """
import os

from fastapi import Depends

from mlserve import Cache, ModelServer, rate_limit
from mlserve.testing import EchoHandler

server = (
    ModelServer()
    .add("kept", EchoHandler, cache=Cache())
    .add("limited", EchoHandler, dependencies=[Depends(rate_limit("1/hour"))])
)
app = server.build()


@app.get("/pid")
async def pid() -> int:
    return os.getpid()
"""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx2.Client]]:
    folder: Path = tmp_path_factory.mktemp("project")
    (folder / "each_app.py").write_text(PROJECT, encoding="utf-8")
    with sharing(folder, "each_app:app") as served, client_of_each(served) as found:
        yield list(found.values())


def ask(client: httpx2.Client, model: str) -> httpx2.Response:
    return client.post(f"/v1/models/{model}/predict", json={"text": "one"})


def test_each_has_a_cache_of_its_own_and_the_metrics_those_of_both(
    clients: list[httpx2.Client],
) -> None:
    uses = [[ask(client, "kept").headers["cache-status"] for _ in range(2)] for client in clients]

    assert uses == [["mlserve; fwd=uri-miss; stored", "mlserve; hit"]] * 2
    labels = {"model": "kept", "version": "v1"}
    for client in clients:
        found = scrape(client)
        assert found.value("mlserve_cache_total", **labels, outcome="miss") == 2
        assert found.value("mlserve_cache_total", **labels, outcome="hit") == 2
    until(lambda: (scrape(clients[0]).value("mlserve_cache_bytes", **labels) or 0) > 2 * 400)


def test_each_counts_for_itself_what_a_caller_takes(clients: list[httpx2.Client]) -> None:
    statuses = [[ask(client, "limited").status_code for _ in range(2)] for client in clients]

    assert statuses == [[200, 429]] * 2
