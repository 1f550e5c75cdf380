"""
What replicas in processes cost and gain, beside replicas in threads.

Real servers in processes of their own, all of them at once and measured in short turns, so that
the machine's moods meet all alike. Processes are set beside threads in each round; medians of that:

- a lone client of a model that does nothing, one request after another: latency
- 64 clients of it, each sending again once it has its answer: requests/s
- 64 clients of a model that computes in Python, holding the interpreter, for 1 ms a request

    python -m benchmarks.placement [--rounds 16] [--seconds 0.5] [--json FILE]
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlserve import ModelHandler, ModelServer, Replicas
from mlserve.testing import running

N_CLIENTS = 64
BODY = b'{"x":1.5}'


class Nothing(ModelHandler[dict[str, float], dict[str, float]]):
    """Gives back what it is given."""

    def infer(self, inputs: list[dict[str, float]]) -> list[dict[str, float]]:
        """Do nothing."""
        return inputs


class Busy(Nothing):
    """Computes in Python."""

    def infer(self, inputs: list[dict[str, float]]) -> list[dict[str, float]]:
        """Hold the interpreter for 1 ms a request."""
        end = time.thread_time() + 0.001 * len(inputs)
        while time.thread_time() < end:
            pass
        return inputs


SYSTEMS = {
    "thread": Replicas(),
    "process": Replicas(placement="process"),
    "2 threads": Replicas(count=2),
    "2 processes": Replicas(count=2, placement="process"),
}


def make_server(name: str) -> ModelServer:
    """Serve both models."""
    server = ModelServer().add("nothing", Nothing, replicas=SYSTEMS[name])
    return server.add("busy", Busy, replicas=SYSTEMS[name])


def serve(name: str, pipe: Connection) -> None:
    """Serve until the pipe says so."""
    with running(make_server(name)) as client:
        pipe.send(client.base_url.port)
        pipe.recv()


class Client(asyncio.Protocol):
    """A connection that sends the same request again and again."""

    def __init__(self, model: str) -> None:
        self.latencies: list[float] = []
        head = (
            f"POST /v1/models/{model}/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        )
        self._request = head.encode() + BODY
        self._transport: Any = None
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first one."""
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Send the next one once the answer is whole."""
        self._received += data
        if self._received.endswith(BODY):
            if not self._received.startswith(b"HTTP/1.1 200"):
                raise AssertionError(self._received)
            self.latencies.append(time.perf_counter() - self._sent_at)
            self._received = b""
            self._send()

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


def _itself(client: Client) -> Client:
    return client


async def load(port: int, model: str, n_clients: int, seconds: float) -> tuple[float, float]:
    """Give requests/s and the median latency in ms."""
    loop = asyncio.get_running_loop()
    clients = [Client(model) for _ in range(n_clients)]
    for client in clients:
        await loop.create_connection(partial(_itself, client), "127.0.0.1", port)
    await asyncio.sleep(seconds / 4)
    for client in clients:
        client.latencies.clear()
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    took_s = time.perf_counter() - started
    latencies = [latency for client in clients for latency in client.latencies]
    for client in clients:
        client.close()
    return len(latencies) / took_s, statistics.median(latencies) * 1000


def measure(port: int, seconds: float) -> dict[str, float]:
    """Measure one system once."""

    async def all_of_it() -> dict[str, float]:
        _, lone_ms = await load(port, "nothing", 1, seconds)
        nothing, _ = await load(port, "nothing", N_CLIENTS, seconds)
        busy, _ = await load(port, "busy", N_CLIENTS, seconds)
        return {"lone_ms": lone_ms, "nothing_per_s": nothing, "busy_per_s": busy}

    try:
        import uvloop
    except ImportError:
        return asyncio.run(all_of_it())
    return uvloop.run(all_of_it())


def main() -> None:
    """Measure all systems in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    pipes, ports = {}, {}
    for name in SYSTEMS:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(name, theirs)).start()
        ports[name] = pipes[name].recv()
    for number in range(options.rounds):
        for name in SYSTEMS if number % 2 else reversed(SYSTEMS):
            results[name].append(measure(ports[name], options.seconds))
    for pipe in pipes.values():
        pipe.send("stop")
    medians = {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }
    for name, median in medians.items():
        figures = ", ".join(f"{key} {value:.3g}" for key, value in median.items())
        print(f"{name:12} {figures}")
    pairs = list(zip(results["process"], results["thread"], strict=True))
    shares = [process["nothing_per_s"] / thread["nothing_per_s"] for process, thread in pairs]
    added_ms = [process["lone_ms"] - thread["lone_ms"] for process, thread in pairs]
    summary = {
        "requests_share": round(statistics.median(shares), 2),
        "lone_added_ms": round(statistics.median(added_ms), 3),
        **{name: {k: round(v, 3) for k, v in median.items()} for name, median in medians.items()},
    }
    print(json.dumps(summary))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
