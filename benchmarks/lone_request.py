"""
What the server adds to a lone request, beside what its `infer` was measured to take.

Runs a real server in a process of its own; one client, one request after another. The model
sleeps 5 ms and measures itself, so that the machine's own lateness is not put down to the server.

    python benchmarks/lone_request.py [--requests 500]
"""

import argparse
import multiprocessing
import re
import socket
import statistics
import time
from multiprocessing.connection import Connection

from mlserve import Batching, ModelHandler, ModelServer
from mlserve.testing import running


class Sleeper(ModelHandler[int, float]):
    """Sleeps 5 ms and answers how long that was, in ms."""

    def infer(self, inputs: list[int]) -> list[float]:
        """Sleep."""
        started = time.perf_counter()
        time.sleep(0.005)
        return [(time.perf_counter() - started) * 1000] * len(inputs)


def serve(wait_s: float, pipe: Connection) -> None:
    """Serve until the pipe says so."""
    server = ModelServer().add("sleeper", Sleeper, batching=Batching(max_wait_s=wait_s))
    with running(server) as client:
        pipe.send(client.base_url.port)
        pipe.recv()


def measure(port: int, n_requests: int) -> tuple[list[float], list[float]]:
    """Measure, per request, what the client and the server see above `infer`, in ms."""
    seen, inside = [], []
    request = (
        b"POST /v1/models/sleeper/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\n1"
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(n_requests + 50):
            started = time.perf_counter()
            connection.sendall(request)
            head, answer = read_answer(connection)
            total_ms = (time.perf_counter() - started) * 1000
            infer_ms = float(answer)
            if number >= 50:  # the first ones warm everything up
                stages = [float(ms) for ms in re.findall(rb"dur=([0-9.]+)", head)]
                seen.append(total_ms - infer_ms)
                inside.append(sum(stages) - infer_ms)
    return seen, inside


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
    """Measure without and with `max_wait_s` and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    n_requests = parser.parse_args().requests
    for wait_s in (0.0, 0.05):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(wait_s, theirs))
        process.start()
        seen, inside = measure(ours.recv(), n_requests)
        ours.send("stop")
        process.join()
        print(  # noqa: T201 - a benchmark prints
            f"max_wait_s={wait_s}: added, seen by the client:"
            f" median {statistics.median(seen):.2f} ms,"
            f" p95 {statistics.quantiles(seen, n=20)[18]:.2f} ms;"
            f" inside the server: median {statistics.median(inside):.2f} ms"
        )


if __name__ == "__main__":
    main()
