"""
What is left of a model's throughput when far more is asked of it than it can do.

The model serves 400 requests per second, one at a time. Requests arrive at random (open loop,
Poisson), at several times that rate, and each is worth something for 250 ms only. Goodput is what
is answered with 200 in that time, counted from the moment at which the request was due, whether or
not the client managed to send it then. The peak is what a closed loop of 16 clients gets; both are
measured in turns. Half a second after each overload, such a loop tells how soon the server is
itself again. Server and client are processes of their own, each on a core of its own where there
are two.

    python -m benchmarks.overload [--seconds 5] [--rounds 3] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import uvloop

from mlserve import Batching, ModelHandler, ModelServer

DEADLINE_S = 0.25
SERVICE_S = 0.0025
LOADS = (2, 5, 10)
CLOSED_LOOP = 16
MAX_CONNECTIONS = 4000
WARM_UP_S = 1.0
RECOVERY_S = 1.0
BARS = {2: (0.95, 20.0), 5: (0.95, 20.0), 10: (0.9, 50.0)}  # goodput, refusals' p99 in ms
HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[^\r]*\r\n(?:[^\r]*\r\n)*?content-length: (\d+)\r\n", re.I)
BODY = b'{"number": 1}'
REQUEST = (
    b"POST /v1/models/slow/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    b"X-Request-Timeout: %g\r\nContent-Length: %d\r\n\r\n%s" % (DEADLINE_S, len(BODY), BODY)
)


class Slow(ModelHandler[dict[str, int], int]):
    """Takes 2.5 ms a request, and one at a time."""

    def infer(self, inputs: list[dict[str, int]]) -> list[int]:
        """Sleep as long as the model would compute."""
        time.sleep(SERVICE_S)
        return [1]


server = ModelServer(title="overload").add("slow", Slow, batching=Batching(max_size=1))


@dataclass(slots=True)
class Result:
    """What became of the requests of one load."""

    offered_per_s: float
    good_per_s: float = 0.0
    good_p50_ms: float = 0.0
    good_p99_ms: float = 0.0
    refused_per_s: float = 0.0
    refused_p50_ms: float = 0.0
    refused_p99_ms: float = 0.0
    late_per_s: float = 0.0
    unsent: int = 0
    statuses: dict[str, int] = field(default_factory=dict)


class Load:
    """Sends requests and keeps, for each answer, its status and how long it took since due."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: deque[_Connection] = deque()
        self.n_connections = 0
        self.answers: list[tuple[int, float]] = []
        self.n_unsent = 0
        self.on_answer = self.note

    def note(self, connection: "_Connection", status: int, latency_s: float) -> None:
        self.answers.append((status, latency_s))
        self.idle.append(connection)

    def send(self, due: float) -> None:
        while self.idle:
            connection = self.idle.pop()
            if not connection.is_lost:
                connection.ask(due)
                return
        if self.n_connections >= MAX_CONNECTIONS:
            self.n_unsent += 1
            return
        asyncio.get_running_loop().create_task(self._connect(due))

    async def _connect(self, due: float) -> None:
        self.n_connections += 1
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self), "127.0.0.1", self.port
        )
        connection.ask(due)

    async def run_open(self, rate: float, seconds: float, dice: random.Random) -> None:
        """Send at random times, however the server fares, then wait for the last answers."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        end = due + seconds
        while (due := due + dice.expovariate(rate)) < end:
            if (ahead := due - loop.time()) > 0:
                await asyncio.sleep(ahead)
            self.send(due)
        await asyncio.sleep(2 * DEADLINE_S)

    async def run_closed(self, n_clients: int, seconds: float) -> None:
        """Send the next request of each client as soon as the one before is answered."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        def again(connection: "_Connection", status: int, latency_s: float) -> None:
            self.answers.append((status, latency_s))
            if loop.time() < end:
                connection.ask(loop.time())

        self.on_answer = again
        for _ in range(n_clients):
            self.send(loop.time())
        await asyncio.sleep(seconds + DEADLINE_S)


class _Connection(asyncio.Protocol):
    """One kept-alive connection; one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._due = 0.0
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._time = asyncio.get_running_loop().time

    def ask(self, due: float) -> None:
        self._due = due
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        found = HEAD.match(received)
        if found is None or len(received) < end + 4 + int(found[2]):
            return
        self._received = b""
        self._load.on_answer(self, int(found[1]), self._time() - self._due)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._load.n_connections -= 1


def summarise(load: Load, offered_per_s: float, seconds: float) -> Result:
    good = sorted(s for status, s in load.answers if status == 200 and s <= DEADLINE_S)
    refused = sorted(s for status, s in load.answers if status == 503)
    statuses = Counter(str(status) for status, _ in load.answers)
    return Result(
        offered_per_s=round(offered_per_s, 1),
        good_per_s=round(len(good) / seconds, 1),
        good_p50_ms=_percentile_ms(good, 0.5),
        good_p99_ms=_percentile_ms(good, 0.99),
        refused_per_s=round(len(refused) / seconds, 1),
        refused_p50_ms=_percentile_ms(refused, 0.5),
        refused_p99_ms=_percentile_ms(refused, 0.99),
        late_per_s=round((len(load.answers) - len(good) - len(refused)) / seconds, 1),
        unsent=load.n_unsent,
        statuses=dict(sorted(statuses.items())),
    )


def _percentile_ms(values: list[float], share: float) -> float:
    return round(values[int(share * (len(values) - 1))] * 1000, 2) if values else 0.0


@contextmanager
def served() -> Iterator[int]:
    """Run `mlserve run` on the first core; the client keeps the last one."""
    cores = sorted(os.sched_getaffinity(0))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlserve", "run", "benchmarks.overload:server"]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.sched_setaffinity(process.pid, cores[:1])
    os.sched_setaffinity(0, cores[-1:])
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET /ready HTTP/1.0\r\nHost: test\r\n\r\n")
                if b" 200 " in connection.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError("The server did not start.")


def _run(port: int, kind: int, peak: float, seconds: float, seed: int) -> Result:
    load = Load(port)
    if kind == 0:
        uvloop.run(load.run_closed(CLOSED_LOOP, seconds))
        return summarise(load, 0.0, seconds)
    rate = kind * peak
    uvloop.run(load.run_open(rate, seconds, random.Random(seed)))
    return summarise(load, rate, seconds)


def main() -> int:
    """Measure, print a table, and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[int, list[Result]] = {load: [] for load in (0, *LOADS)}
    after: dict[int, list[Result]] = {load: [] for load in LOADS}
    with served() as port:
        _run(port, 0, 0, WARM_UP_S, 0)
        for round_ in range(options.rounds):
            results[0].append(_run(port, 0, 0, options.seconds, 0))
            peak = statistics.median(result.good_per_s for result in results[0])
            for load in LOADS:
                results[load].append(_run(port, load, peak, options.seconds, round_))
                after[load].append(_run(port, 0, 0, RECOVERY_S, 0))
                print(f"{load}x {results[load][-1]}", flush=True)
    report = evaluate(results, after)
    for line in report["lines"]:
        print(line)
    if options.json:
        raw = {str(load): [asdict(r) for r in found] for load, found in results.items()}
        options.json.write_text(json.dumps(report | {"results": raw}, indent=2), encoding="utf-8")
    return 0 if report["is_met"] else 1


def evaluate(results: dict[int, list[Result]], after: dict[int, list[Result]]) -> dict[str, object]:
    """Give medians over the rounds, against the bars."""
    peak = statistics.median(result.good_per_s for result in results[0])
    lines = [f"peak {peak:.0f}/s (closed loop of {CLOSED_LOOP})"]
    figures, is_met = {}, True
    for load in LOADS:
        share = statistics.median(result.good_per_s for result in results[load]) / peak
        p99 = statistics.median(result.refused_p99_ms for result in results[load])
        n_unsent = sum(result.unsent for result in results[load])
        recovered = statistics.median(result.good_per_s for result in after[load]) / peak
        is_good = share >= BARS[load][0] and p99 <= BARS[load][1] and n_unsent == 0
        is_met = is_met and is_good
        figures[str(load)] = {
            "goodput_share": round(share, 3),
            "refused_p99_ms": p99,
            "share_after": round(recovered, 3),
        }
        lines.append(
            f"{load}x: goodput {share:.1%} of the peak (bar {BARS[load][0]:.0%}), refusals' p99"
            f" {p99:.1f} ms (bar {BARS[load][1]:.0f}), {n_unsent} unsent:"
            f" {'met' if is_good else 'MISSED'}; {recovered:.1%} of the peak right after it"
        )
    return {"peak_per_s": peak, "loads": figures, "is_met": is_met, "lines": lines}


if __name__ == "__main__":
    sys.exit(main())
