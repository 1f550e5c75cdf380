"""
What is left over HTTP of what a sentence encoder does offline.

The model is the real all-MiniLM-L6-v2, the texts have mixed lengths. Over HTTP, 64 connections of a
process of its own each send a text again once they have their answer, to `mlserve run` with the
defaults of `TextEmbedding`. Offline, the same replicas in a process of their own have 64 texts at a
time, and the same queue divides them into batches. Both count tokens, since texts are not alike;
they are measured in turns, so that the machine's moods meet both alike.

    python -m benchmarks.encoders [--rounds 5] [--seconds 10] [--quick] [--json FILE]
"""

import argparse
import asyncio
import functools
import itertools
import json
import math
import multiprocessing
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from benchmarks.compare.workloads import texts

from mlserve import ModelServer
from mlserve.batching.queue import BatchLimits, RequestQueue
from mlserve.handler import Context
from mlserve.huggingface import EmbeddingRequest, TextEmbedding, samples
from mlserve.huggingface._encoder import Tokens

N_OUTSTANDING = 64
WARM_UP_S = 2.0
BAR = 0.9
HEAD = re.compile(rb"HTTP/1\.1 200[^\r]*\r\n(?:[^\r]*\r\n)*?content-length: (\d+)\r\n", re.I)
N_TOKENS = re.compile(rb'"tokens":(\d+)')

server = ModelServer(title="encoders").add(
    "minilm", functools.partial(TextEmbedding, samples.minilm())
)


@dataclass(eq=False, slots=True)
class Item:
    """A text in the offline queue."""

    payload: Tokens
    cost: int
    priority: int = 0
    tenant: None = None
    key: None = None
    deadline: float = math.inf
    abandoned: bool = False
    enqueued_at: float = 0.0


class Offline:
    """Replicas that share a queue of `N_OUTSTANDING` texts, without any server."""

    def __init__(self) -> None:
        batching, replicas = TextEmbedding.batching, TextEmbedding.replicas
        self._limits = BatchLimits(
            max_size=batching.max_size, max_cost=batching.max_cost, padded=batching.padded
        )
        # Each with a thread of its own that also loads it: torch counts compute threads by thread.
        self._replicas = []
        for number in range(replicas.min_count):
            handler, thread = TextEmbedding(samples.minilm()), ThreadPoolExecutor(1)
            handler.context = Context(
                device=next(iter(replicas.devices)),
                replica=number,
                threads=replicas.threads_per_replica,
            )
            thread.submit(handler.load).result()
            self._replicas.append((handler, thread))
        self._queue: RequestQueue[Item] = RequestQueue(N_OUTSTANDING)
        self._lock = threading.Lock()
        self._texts = itertools.cycle(texts())
        self._n_tokens = self._n_texts = 0
        self._is_over = threading.Event()

    def measure(self, seconds: float) -> tuple[float, float]:
        """Give tokens/s and texts/s, after a while in which all replicas get busy."""
        self._queue.clear()
        self._refill(self._replicas[0][0], N_OUTSTANDING)
        self._is_over.clear()
        running = [thread.submit(self._work, handler) for handler, thread in self._replicas]
        time.sleep(WARM_UP_S)
        with self._lock:
            self._n_tokens = self._n_texts = 0
            started = time.perf_counter()
        time.sleep(seconds)
        with self._lock:
            took_s = time.perf_counter() - started
            result = self._n_tokens / took_s, self._n_texts / took_s
        self._is_over.set()
        for each in running:
            each.result()
        return result

    def _refill(self, handler: TextEmbedding, n: int) -> None:
        with self._lock:
            wanted = list(itertools.islice(self._texts, n))
        for text in wanted:
            tokens = handler.preprocess(EmbeddingRequest(text=text))
            with self._lock:
                self._queue.reserve()
                self._queue.put(Item(tokens, handler.cost(tokens)))

    def _work(self, handler: TextEmbedding) -> None:
        while not self._is_over.is_set():
            with self._lock:
                batch = self._queue.take(self._limits, 0.0).batch
            if batch:
                handler.infer([item.payload for item in batch])
            with self._lock:
                self._n_tokens += sum(item.cost for item in batch)
                self._n_texts += len(batch)
            self._refill(handler, len(batch))


def work_offline(pipe: Connection) -> None:
    """Measure whenever the pipe says for how long; 0 = no more."""
    offline = Offline()
    pipe.send("ready")
    while seconds := pipe.recv():
        pipe.send(offline.measure(seconds))


class _Connection(asyncio.Protocol):
    """Sends the next text once it has its answer."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        found = HEAD.match(self._received)
        if found is None:
            raise AssertionError(bytes(self._received[:200]))
        if len(self._received) < end + 4 + int(found[1]):
            return
        tokens = N_TOKENS.search(self._received, max(end, len(self._received) - 40))
        if tokens is None:
            raise AssertionError(bytes(self._received[-200:]))
        self._load.n_tokens += int(tokens[1])
        self._load.n_texts += 1
        self._received.clear()
        self._send()

    def _send(self) -> None:
        body = json.dumps({"text": next(self._load.texts)}).encode()
        self.transport.write(
            b"POST /v1/models/minilm/predict HTTP/1.1\r\nHost: test\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )


class Load:
    """`N_OUTSTANDING` connections, and what was answered on them."""

    def __init__(self) -> None:
        self.texts = itertools.cycle(texts())
        self.n_tokens = self.n_texts = 0

    async def measure(self, port: int, seconds: float) -> tuple[float, float]:
        """Give tokens/s and texts/s, after a while in which all connections get busy."""
        loop = asyncio.get_running_loop()
        connections = [
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", port)
            for _ in range(N_OUTSTANDING)
        ]
        await asyncio.sleep(WARM_UP_S)
        self.n_tokens = self.n_texts = 0
        started = loop.time()
        await asyncio.sleep(seconds)
        took_s = loop.time() - started
        result = self.n_tokens / took_s, self.n_texts / took_s
        for transport, _ in connections:
            transport.abort()
        return result


@contextmanager
def served() -> Iterator[int]:
    """Run `mlserve run`, and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlserve", "run", "benchmarks.encoders:server"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int) -> None:
    for _ in range(1200):
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET /ready HTTP/1.0\r\nHost: test\r\n\r\n")
                if b" 200 " in connection.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError("The server did not start.")


def main() -> int:
    """Measure in turns, print the ratio, and say whether the bar is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 3 seconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds, seconds = (2, 3.0) if options.quick else (options.rounds, options.seconds)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    worker = context.Process(target=work_offline, args=(theirs,))
    worker.start()
    pipe.recv()
    results: dict[str, list[tuple[float, float]]] = {"offline": [], "http": []}
    with served() as port:
        for number in range(-1, rounds):
            took_s = seconds if number >= 0 else 1.0
            found = {}
            for name in ("offline", "http") if number % 2 else ("http", "offline"):
                if name == "offline":
                    pipe.send(took_s)
                    found[name] = pipe.recv()
                else:
                    found[name] = asyncio.run(Load().measure(port, took_s))
            if number >= 0:  # the first turn warms both up
                for name, figures in found.items():
                    results[name].append(figures)
    pipe.send(0)
    worker.join()
    return report(results, options.json)


def report(results: dict[str, list[tuple[float, float]]], path: Path | None) -> int:
    """Print the medians and their ratio."""
    ratios = [h[0] / o[0] for o, h in zip(results["offline"], results["http"], strict=True)]
    ratio = statistics.median(ratios)
    summary: dict[str, object] = {"ratio": round(ratio, 3), "is_met": ratio >= BAR}
    for name, rounds in results.items():
        tokens = statistics.median(tokens for tokens, _ in rounds)
        each = statistics.median(texts for _, texts in rounds)
        print(f"{name:8} {tokens:8.0f} tokens/s {each:7.1f} texts/s")
        summary[name] = {"tokens_per_s": round(tokens), "texts_per_s": round(each, 1)}
    spread = ", ".join(f"{value:.1%}" for value in ratios)
    print(f"HTTP does {ratio:.1%} of offline (bar {BAR:.0%}; rounds: {spread})")
    print(json.dumps(summary))
    if path:
        path.write_text(json.dumps(summary | {"rounds": results}, indent=2), encoding="utf-8")
    return 0 if ratio >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
