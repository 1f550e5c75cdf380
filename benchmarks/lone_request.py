"""
What a server adds to a lone request, beside what the model was measured to take.

Real servers in processes of their own, one client each, one request after another, in turns of 50
requests so that the machine's moods meet all alike. The model sleeps 5 ms and measures itself.
Beside mlserve, with and without `max_wait_s`, stand the same endpoint written by hand in FastAPI
(`def`, so in a thread as well) and the least that one thread costs: a bare ASGI application.

    python -m benchmarks.lone_request [--rounds 10] [--json FILE]
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import socket
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI

from mlserve import Batching, ModelHandler, ModelServer
from mlserve.testing import running

PER_ROUND = 50
BAR_MS = 0.8


def sleep_5_ms() -> float:
    """Sleep, and say how long that was, in ms."""
    started = time.perf_counter()
    time.sleep(0.005)
    return (time.perf_counter() - started) * 1000


class Sleeper(ModelHandler[int, float]):
    """Answers how long it slept."""

    def infer(self, inputs: list[int]) -> list[float]:
        """Sleep."""
        return [sleep_5_ms()] * len(inputs)


def mlserve_app(max_wait_s: float) -> Any:
    """Serve the model with all features on."""
    return ModelServer().add("m", Sleeper, batching=Batching(max_wait_s=max_wait_s))


def fastapi_app() -> Any:
    """Write the same endpoint by hand, without any of the features."""
    app = FastAPI()

    @app.post("/v1/models/m/predict")
    def predict(number: Annotated[int, Body()]) -> float:
        return sleep_5_ms()

    return app


def bare_app() -> Any:
    """Go to a thread and back, and nothing else."""
    pool = ThreadPoolExecutor(1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await receive()
            slept = await asyncio.get_running_loop().run_in_executor(pool, sleep_5_ms)
            body = str(slept).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return app


SYSTEMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "mlserve": (mlserve_app, (0.0,)),
    "mlserve, max_wait_s=0.05": (mlserve_app, (0.05,)),
    "FastAPI by hand (def)": (fastapi_app, ()),
    "bare ASGI and a thread": (bare_app, ()),
}


def serve(name: str, pipe: Connection) -> None:
    """Serve until the pipe says so."""
    make, args = SYSTEMS[name]
    with running(make(*args)) as client:
        pipe.send(client.base_url.port)
        pipe.recv()


def measure(connection: socket.socket) -> list[tuple[float, float | None]]:
    """Measure, per request, what client and server see above the model, in ms."""
    request = (
        b"POST /v1/models/m/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\n1"
    )
    added = []
    for number in range(PER_ROUND + 5):
        started = time.perf_counter()
        connection.sendall(request)
        head, answer = read_answer(connection)
        total_ms = (time.perf_counter() - started) * 1000
        stages = [float(ms) for ms in re.findall(rb"dur=([0-9.]+)", head)]
        if number >= 5:  # the first ones warm up what the other systems cooled down
            model_ms = float(answer)
            added.append((total_ms - model_ms, sum(stages) - model_ms if stages else None))
    return added


def read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read one answer: head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.findall(rb"content-length: (\d+)", head)[0])
    while len(body) < length:
        body += connection.recv(4096)
    return head, body


def main() -> None:
    """Measure all systems in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes, connections = {}, {}
    for name in SYSTEMS:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(name, theirs), daemon=True).start()
        connections[name] = socket.create_connection(("127.0.0.1", pipes[name].recv()))
        connections[name].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    added: dict[str, list[tuple[float, float | None]]] = {name: [] for name in SYSTEMS}
    for _ in range(options.rounds):
        for name, connection in connections.items():
            added[name] += measure(connection)
    found = {}
    for name, values in added.items():
        seen = [client for client, _ in values]
        inside = [server for _, server in values if server is not None]
        found[name] = {"seen_ms": statistics.median(seen)}
        if inside:
            found[name]["inside_ms"] = statistics.median(inside)
        note = f"; inside the server {statistics.median(inside):.2f} ms" if inside else ""
        print(
            f"{name:26} adds, seen by the client: median {statistics.median(seen):.2f} ms,"
            f" p95 {statistics.quantiles(seen, n=20)[18]:.2f} ms{note}"
        )
    is_met = found["mlserve"]["seen_ms"] <= BAR_MS
    print(f"The bar is {BAR_MS} ms: {'met' if is_met else 'missed'}.")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    for pipe in pipes.values():
        pipe.send("stop")


if __name__ == "__main__":
    main()
