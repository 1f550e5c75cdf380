"""Records of real servers: stopped with thousands waiting, on a full disk, with two processes."""

import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

import pytest
from tests.cli.projects import serving
from tests.cli.sharing import client_of_each
from tests.http.waiting import until
from tests.integrations.databases import ask, n_rows, postgres_url, sqlite_url

pytestmark = pytest.mark.slow

PROJECT = """
import asyncio
import os
from typing import Annotated

from fastapi import Depends

from mlserve import Limits, Model, ModelHandler, ModelServer, Replicas
from mlserve.integrations.sql import SqlSink
from mlserve.records import SinkOptions


class Double(ModelHandler[float, float]):
    def examples(self) -> list[float]:
        return [1.0]

    def infer(self, inputs: list[float]) -> list[float]:
        return [2 * value for value in inputs]


async def ask(model: Model, n: int) -> int:
    return len(await asyncio.gather(*(model.predict(value) for value in range(n))))


waiting = SinkOptions(max_queue=20_000, batch_size=20_000, max_wait_s=3600)
server = ModelServer(sinks=[SqlSink(os.environ["URL"], options=waiting)])
server.add("double", Double, limits=Limits(max_queue_size=1000))
app = server.build()


@app.post("/many")
async def many(n: int, model: Annotated[Model, Depends(server.model("double"))]) -> int:
    return sum([await ask(model, 500) for _ in range(n // 500)])


shared = ModelServer(sinks=[SqlSink(os.environ["URL"])])
shared.add("double", Double, replicas=Replicas(placement="process"))
shared_app = shared.build()


@shared_app.get("/pid")
async def pid() -> int:
    return os.getpid()
"""

FULL = """
import resource
import sys

from mlserve.integrations.sql import SqlSink
from mlserve.records import SinkOptions
from mlserve.testing import running
from tests.http.waiting import until
from tests.records.sinks import double, serving_doubles, state_of

options = SinkOptions(max_wait_s=0.01, max_tries=2)
with running(serving_doubles(SqlSink(sys.argv[1], options=options))) as client:
    double(client)
    until(lambda: state_of(client, "SqlSink")["written"] == 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    for value in range(20):
        assert double(client, value) == 2 * value
    until(lambda: state_of(client, "SqlSink")["failed"] >= 1)
    assert client.get("/ready").status_code == 200
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    until(lambda: state_of(client, "SqlSink")["waiting"] == 0)
    double(client)
    until(lambda: state_of(client, "SqlSink")["waiting"] == 0)
    state = state_of(client, "SqlSink")
print(state["state"], state["written"], state["failed"])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "records_app.py").write_text(PROJECT, encoding="utf-8")
    return tmp_path


def test_ten_thousand_records_that_wait_are_written_at_the_end(folder: Path) -> None:
    url = sqlite_url(folder)

    with serving(folder, "records_app:app", URL=url) as served, served.client() as client:
        assert client.post("/many", params={"n": 10_000}, timeout=40).json() == 10_000
        [sink] = client.get("/ready").json()["sinks"]
        served.process.send_signal(SIGTERM)
        code = served.exit_code()

    assert (sink["waiting"], sink["written"]) == (10_000, 0)
    assert code == 0
    assert n_rows(url) == 10_000


def test_the_processes_of_one_server_share_a_database(folder: Path) -> None:
    with (
        postgres_url() as url,
        serving(folder, "records_app:shared_app", "--workers", "2", URL=url) as served,
    ):
        with client_of_each(served) as clients:
            for client in clients.values():
                until(lambda client=client: client.get("/ready").status_code == 200)  # type: ignore[misc]
                assert client.post("/v1/models/double/predict", json=4).json() == 8
        served.process.send_signal(SIGTERM)
        code = served.exit_code()
        rows = ask(url, "SELECT DISTINCT split_part(id, '-', 1) FROM mlserve_records")

        assert code == 0
        assert len(rows) == 2
        assert n_rows(url) == 2


def test_a_full_disk_costs_records_and_no_answer(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)

    done = subprocess.run(
        [sys.executable, "-c", FULL, url],
        capture_output=True,
        text=True,
        timeout=40,
        cwd=Path(__file__).parents[2],
        check=False,
    )

    assert done.returncode == 0, done.stderr
    state, *counts = done.stdout.split()
    written, failed = map(int, counts)
    assert state == "ready"
    assert failed >= 1
    assert written + failed == 22
    assert n_rows(url) == written
