"""A server that nobody asks does nothing: no part of it polls, whatever it was asked before."""

import threading
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from tests.cli.projects import serving

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

WATCHED_S = 2.0
MOST = 0.05  # of a core, while the test watches; uvicorn itself looks around ten times a second

PROJECT = """
from collections.abc import Iterator

from mlserve import Batching, ModelHandler, ModelServer, Replicas


class Echo(ModelHandler[str, str]):
    batching = Batching(max_size=8, max_wait_s=0.005)

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs

    def stream(self, item: str) -> Iterator[str]:
        yield item


server = (
    ModelServer()
    .add("threads", Echo)
    .add("processes", Echo, replicas=Replicas(placement="process"))
)
"""


def test_an_idle_server_takes_no_time_of_the_processor_after_requests_of_all_kinds(
    tmp_path: Path,
) -> None:
    (tmp_path / "idle_project.py").write_text(PROJECT, encoding="utf-8")
    with serving(tmp_path, "idle_project:server") as served, served.client() as client:
        for model in ("threads", "processes"):
            for _ in range(20):
                client.post(f"/v1/models/{model}/predict", json="a").raise_for_status()
            client.post(f"/v1/models/{model}/stream", json="a").raise_for_status()

        before_s = used_s(served.process.pid)
        threading.Event().wait(WATCHED_S)
        took_s = used_s(served.process.pid) - before_s

    assert took_s < MOST * WATCHED_S


def used_s(pid: int) -> float:
    """Say how long the processor was used by a process and those that it has started."""
    server = psutil.Process(pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))
