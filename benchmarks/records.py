"""
What records cost: the latency of the requests that they are of, and microseconds per request.

Two servers in processes of their own, one without a sink and one with `SqlSink` on SQLite, are
asked in turns of 500 requests by eight clients that ask again at once, until 10,000 records are
written. The model sleeps 5 ms for each batch. Then the same process measures what ends a request:
metrics, the line in the access log (queued, as under `mlserve run`) and the record, without a
server around it, and what the sink spends on each record in the background.

    python -m benchmarks.records [--turns 20]
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlserve import Batching, ModelHandler, ModelServer, ServerSettings
from mlserve.handler import Call
from mlserve.http.exchange import Exchange
from mlserve.integrations.sql import SqlSink
from mlserve.job import Job, StageTimes
from mlserve.observability.access_log import inference_line
from mlserve.observability.listeners import Ended, Listeners
from mlserve.observability.log_queue import queued_logging
from mlserve.records import InferenceRecord, SinkOptions
from mlserve.records.recording import Recording
from mlserve.testing import running

PER_TURN, N_CLIENTS, N_RECORDS = 500, 8, 10_000
BAR_RATIO, BAR_US = 1.1, 15.0
REQUEST = (
    b"POST /v1/models/m/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\n1"
)


class Sleeper(ModelHandler[int, int]):
    """Takes 5 ms a batch."""

    def infer(self, inputs: list[int]) -> list[int]:
        """Sleep."""
        time.sleep(0.005)
        return inputs


class NoSink:
    """Takes records and does nothing with them."""

    options = SinkOptions(max_queue=1_000_000, batch_size=1_000_000, max_wait_s=3600)

    async def open(self) -> None:
        """Do nothing."""

    async def write(self, records: Sequence[InferenceRecord]) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


def serve(url: str, pipe: Connection) -> None:
    """Serve until the pipe says so, and tell then what became of the records."""
    sinks = [SqlSink(url)] if url else []
    server = ModelServer(sinks=sinks).add("m", Sleeper, batching=Batching(max_size=N_CLIENTS))
    with running(server) as client:
        pipe.send(client.base_url.port)
        pipe.recv()
    pipe.send([outlet.counts for outlet in server.registry.recording])


async def one_client(port: int, n: int, latencies_ms: list[float]) -> None:
    """Ask one request after the other over one connection."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(n):
            started = time.perf_counter()
            await loop.sock_sendall(connection, REQUEST)
            data = b""
            while not re.search(rb"\r\n\r\n.", data):
                data += await loop.sock_recv(connection, 4096)
            latencies_ms.append((time.perf_counter() - started) * 1000)


def take_turn(port: int) -> tuple[float, float]:
    """Ask the requests of one turn and give their median and p99 in ms."""

    async def run() -> list[float]:
        latencies_ms: list[float] = []
        share = PER_TURN // N_CLIENTS
        await asyncio.gather(*(one_client(port, share, latencies_ms) for _ in range(N_CLIENTS)))
        return latencies_ms

    percentiles = statistics.quantiles(asyncio.run(run()), n=100)
    return percentiles[49], percentiles[98]


def measure_latency(n_turns: int, folder: Path) -> None:
    """Ask both servers in turns and print what records cost their requests."""
    urls = {"without": "", "with": f"sqlite+aiosqlite:///{folder / 'records.db'}"}
    context = multiprocessing.get_context("spawn")
    pipes, ports = {}, {}
    for name, url in urls.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(url, theirs), daemon=True).start()
        ports[name] = pipes[name].recv()
        take_turn(ports[name])
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in urls}
    for number in range(n_turns):
        for name in sorted(urls, reverse=number % 2 == 1):
            turns[name].append(take_turn(ports[name]))
    for pipe in pipes.values():
        pipe.send("stop")
    counts = {name: pipe.recv() for name, pipe in pipes.items()}
    print(f"records: {counts['with'][0]}")
    for name, values in turns.items():
        for index, what in enumerate(("median", "p99")):
            print(f"{name:8} {what:6} {describe([value[index] for value in values])} ms")
    ratios = [w[1] / o[1] for w, o in zip(turns["with"], turns["without"], strict=True)]
    p99 = {name: statistics.median(value[1] for value in values) for name, values in turns.items()}
    ratio = p99["with"] / p99["without"]
    print(f"p99 with / without, turn by turn: {describe(ratios)}")
    print(f"of the medians {ratio:.3f}; the bar is {BAR_RATIO}: {verdict(ratio <= BAR_RATIO)}.")


def describe(values: list[float]) -> str:
    """Give median, middle half and extremes."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f}; {min(values):.2f} to {max(values):.2f})"


def verdict(is_met: bool) -> str:
    """Say whether a bar is met."""
    return "met" if is_met else "missed"


async def measure_end(*, has_sink: bool, has_log: bool) -> float:
    """Give what the end of a request costs, in µs: the least, as other work only adds."""
    recording = Recording([NoSink()] if has_sink else [])
    listeners = Listeners()
    recording.record(listeners, ())
    recording.open()
    settings = ServerSettings(access_log=has_log)
    costs_us = []

    async def send(message: Any) -> None:
        """Send nowhere."""

    for _ in range(20):
        exchanges = []
        for _ in range(500):
            scope = {"type": "http", "headers": [], "method": "POST"}
            exchange = Exchange(scope, send, settings, "m", "v1", listeners)
            exchange.job = Job(1, Call("r", timeout_s=60.0), timeout_s=60.0)
            exchange.job.times.batch_size = 8
            await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
            exchanges.append(exchange)
        started = time.thread_time()
        for exchange in exchanges:
            exchange.finish()
        costs_us.append((time.thread_time() - started) / len(exchanges) * 1e6)
        await asyncio.sleep(0.05)  # the log is written meanwhile
    await recording.close(0.0 if not has_sink else 5.0)
    return min(costs_us)


def measure_ends() -> None:
    """Print what the end of a request costs on the event loop."""
    logger = logging.getLogger("mlserve.access")
    logger.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115 - kept open
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with queued_logging("mlserve.access"):
        metrics = asyncio.run(measure_end(has_sink=False, has_log=False))
        logged = asyncio.run(measure_end(has_sink=False, has_log=True))
        full = asyncio.run(measure_end(has_sink=True, has_log=True))
    print(f"metrics {metrics:.1f} µs, log {logged - metrics:.1f} µs, record {full - logged:.1f} µs")
    print(f"together {full:.1f} µs; the bar is {BAR_US:g} µs: {verdict(full <= BAR_US)}.")


def measure_sink(folder: Path) -> None:
    """Print what the sink spends on a record, in all threads of this process."""
    line = inference_line(
        request_id="r", model="m", version="v1", status=200, code=None, total_s=0.01,
        times=StageTimes(), annotations={},
    )  # fmt: skip

    async def run() -> tuple[float, float, float]:
        recording = Recording([SqlSink(f"sqlite+aiosqlite:///{folder / 'sink.db'}")])
        recording.open()
        [outlet] = recording
        while outlet.state != "ready":  # noqa: ASYNC110 - it makes its tables
            await asyncio.sleep(0.01)
        for _ in range(N_RECORDS):
            outlet.put(Ended(line=line, annotations={}, at=time.time(), is_stream=False))  # noqa: TID251
        wall, loop, process = time.perf_counter(), time.thread_time(), time.process_time()
        await recording.close(60.0)
        return (
            time.perf_counter() - wall,
            (time.thread_time() - loop) / N_RECORDS * 1e6,
            (time.process_time() - process) / N_RECORDS * 1e6,
        )

    wall_s, loop_us, process_us = asyncio.run(run())
    print(
        f"SQLite: {N_RECORDS} records in {wall_s:.2f} s; per record {loop_us:.1f} µs on the event"
        f" loop, {process_us:.1f} µs in all threads"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=N_RECORDS // PER_TURN)
    n_turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        measure_latency(n_turns, Path(folder))
        measure_ends()
        measure_sink(Path(folder))


if __name__ == "__main__":
    main()
