"""
Several processes speak HTTP, and all of them use one copy of the model.

    mlserve run 15_workers:app --workers 2
    python 15_workers.py                      # the same
"""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2

from mlserve import ModelHandler, ModelServer, Replicas, ServerSettings

Answer = dict[str, int]


class Company(ModelHandler[int, Answer]):
    """Says in which process it runs, and how many requests it was given at once."""

    def examples(self) -> list[int]:
        return [1]

    def infer(self, inputs: list[int]) -> list[Answer]:
        time.sleep(0.05)  # long enough that the next requests gather for a batch
        return [{"model": os.getpid(), "batch": len(inputs)}] * len(inputs)


# HTTP begins when the model is loaded, however long that takes.
server = ModelServer(settings=ServerSettings(startup_wait_s=float("inf")))
server.add("company", Company, replicas=Replicas(placement="process"))
app = server.build()


@app.get("/who")
async def who() -> int:
    return os.getpid()


def ask(url: str) -> tuple[int, Answer]:
    with httpx2.Client(base_url=url, timeout=30.0) as client:  # a connection of its own
        client.get("/ready").raise_for_status()
        answer = client.post("/v1/models/company/predict", json=1).json()
        return client.get("/who").json(), answer


def check(url: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(url), range(32)))
    of_http = {pid for pid, _ in answers}
    of_model = {answer["model"] for _, answer in answers}
    largest = max(answer["batch"] for _, answer in answers)
    print(f"{len(of_http)} HTTP processes, {len(of_model)} of the model, batches up to {largest}")
    assert len(of_http) == 2
    assert len(of_model) == 1
    assert largest > 1


if __name__ == "__main__":
    if "--check" not in sys.argv:
        server.run(workers=2)
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlserve", "run", "15_workers:app", "--workers", "2"]
        with subprocess.Popen([*command, "--port", str(port)]) as served:  # noqa: S603
            with httpx2.Client(transport=httpx2.HTTPTransport(retries=8)) as patient:
                patient.get(f"http://127.0.0.1:{port}/health").raise_for_status()
            check(f"http://127.0.0.1:{port}")
            served.terminate()
        assert served.returncode == 0
