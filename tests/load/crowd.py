"""Crowds of clients for the load tests: idle ones, slow ones, and one whose time is taken."""

import heapq
import random
import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

with suppress(ImportError):  # not on Windows, where there is no such limit
    import resource

HEALTH = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
READY = HEALTH.replace(b"/health", b"/ready")
POST = b"POST /v1/models/%s HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
HEAD = POST % b"echo/predict"

N_STORMING = 200
_RETRY_AFTER = re.compile(rb"\r\nretry-after: ([^\r]*)\r\n")

SLOW = {
    "head": (HEAD, b"x-slow: " + b"a" * 1000),
    "body": (HEAD + b"Content-Length: 1000\r\n\r\n", b'"' + b"a" * 900),
    "silent": (b"", b""),
}
"""What each kind of slow client sends at once, and what follows in single bytes."""


def post(path: str, body: bytes) -> bytes:
    return POST % path.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


ECHO = post("echo/predict", b'{"text":"a"}')


def allow_open_files(n: int) -> None:
    """Allow this process and those that it starts so many descriptors, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if n > hard:
        pytest.skip(f"needs {n} descriptors; the system allows {hard}: raise `ulimit -Hn`")
    if n > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n, hard))


def connect(port: int, *, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    return connection


def memory_mb(pid: int) -> float:
    """Say how much memory a process has in RAM."""
    return _memory_mb(pid, "VmRSS:")


def peak_memory_mb(pid: int) -> float:
    """Say how much memory a process had in RAM at most since `forget_peak`."""
    return _memory_mb(pid, "VmHWM:")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _memory_mb(pid: int, name: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def n_open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def latencies_s(
    port: int, is_over: Callable[[], bool], request: bytes = ECHO, every_s: float = 0.004
) -> list[float]:
    """
    Ask on one connection at fixed times, until it is over, and give how long each answer took.

    Each latency counts from when its request was due, so that a server which stands still is not
    asked less often for it.
    """
    taken: list[float] = []
    started = time.perf_counter()
    with connect(port) as connection:
        while not is_over():
            due = started + len(taken) * every_s
            time.sleep(max(0.0, due - time.perf_counter()))  # the pace of the requests
            connection.sendall(request)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
            taken.append(time.perf_counter() - due)
    return taken


def probed_s(port: int, request: bytes, is_over: Callable[[], bool]) -> list[float]:
    """Ask as a load balancer probes, on a new connection each time; give how long each took."""
    taken: list[float] = []
    while not is_over():
        started = time.perf_counter()
        with connect(port) as connection:
            connection.sendall(request)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        taken.append(time.perf_counter() - started)
        time.sleep(0.01)  # the pace of the probes
    return taken


def after(seconds: float) -> Callable[[], bool]:
    """Give what says whether so much time has passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


@dataclass(frozen=True, slots=True)
class Storm:
    """What became of as many requests as could be sent."""

    statuses: Counter[int]
    refused_s: list[float]
    """How long each refusal took."""
    retry_after: set[bytes]
    """What the refusals said of when to come back."""


def storm(port: int, request: bytes, *, per_s: int, lasting_s: float) -> Storm:
    """
    Ask so often, however the server fares.

    Each answer's time counts from when its request was due, whether or not a connection was free.
    """
    result = Storm(Counter(), [], set())
    poll = select.epoll()
    opened = [connect(port) for _ in range(N_STORMING)]
    for connection in opened:
        poll.register(connection, select.EPOLLIN)
    by_descriptor = {connection.fileno(): connection for connection in opened}
    free, asked_at = deque(opened), dict[int, float]()
    started = time.perf_counter()
    for number in range(int(per_s * lasting_s)):
        due = started + number / per_s
        while (left_s := due - time.perf_counter()) > 0 or not free:
            for descriptor, _ in poll.poll(max(0.0, left_s)):
                connection = by_descriptor[descriptor]
                _note_answer(result, connection.recv(65_536), asked_at.pop(descriptor))
                free.append(connection)
        connection = free.popleft()
        asked_at[connection.fileno()] = due
        connection.sendall(request)
    for connection in opened:
        connection.close()
    return result


def _note_answer(result: Storm, answer: bytes, asked_at: float) -> None:
    status = int(answer[9:12])
    result.statuses[status] += 1
    if status == 503:
        result.refused_s.append(time.perf_counter() - asked_at)
        result.retry_after.add(_RETRY_AFTER.findall(answer)[0])


@dataclass(frozen=True, slots=True)
class Cut:
    """How a slow client fared."""

    kind: str
    received: bytes
    lasted_s: float


def crawl(port: int, n: int, *, arriving_s: float, give_up_s: float) -> list[Cut]:
    """
    Be so many slow clients, each until the server closes its connection.

    Args:
        port: The server's.
        n: How many there are; they are of each kind in turn.
        arriving_s: Within what time they come.
        give_up_s: After what time whoever is left counts for nothing.
    """
    crawlers = _Crawlers(port)
    started = time.monotonic()
    dice = random.Random(n)
    for number in range(n):
        crawlers.add(number, started + dice.uniform(0, arriving_s))
    while len(crawlers.cuts) < n and time.monotonic() < started + give_up_s:
        crawlers.go_on(dice)
    return crawlers.cuts


class _Crawlers:
    """Thousands of slow clients in one thread, as cheap as can be: the server is to be measured."""

    def __init__(self, port: int) -> None:
        self.cuts: list[Cut] = []
        self._port = port
        self._kinds = list(SLOW)
        # When which client sends its next byte, and which one that is; 0 = it connects.
        self._due: list[tuple[float, int, int]] = []
        self._open: dict[int, tuple[socket.socket, float]] = {}
        self._numbers: dict[int, int] = {}  # descriptor → number
        self._poll = select.epoll()

    def add(self, number: int, at: float) -> None:
        heapq.heappush(self._due, (at, number, 0))

    def go_on(self, dice: random.Random) -> None:
        """Send what is due, then look who was cut."""
        while self._due and self._due[0][0] <= time.monotonic():
            _, number, step = heapq.heappop(self._due)
            if self._send(number, step):
                again = time.monotonic() + dice.uniform(0.3, 0.7)
                heapq.heappush(self._due, (again, number, step + 1))
        for descriptor, _ in self._poll.poll(0.005):
            self._read(descriptor)

    def _send(self, number: int, step: int) -> bool:
        """Send the next piece; whether there is another one."""
        at_once, in_drops = SLOW[self._kind_of(number)]
        if step == 0:
            connection = connect(self._port)
            self._open[number] = connection, time.monotonic()
            self._numbers[connection.fileno()] = number
            self._poll.register(connection, select.EPOLLIN)
            connection.sendall(at_once)
        elif number in self._open:
            with suppress(OSError):  # it has just been cut
                self._open[number][0].sendall(in_drops[step - 1 : step])
        return number in self._open and step < len(in_drops)

    def _read(self, descriptor: int) -> None:
        number = self._numbers.pop(descriptor)
        connection, began = self._open.pop(number)
        received = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(65_536):
                received += piece
        self._poll.unregister(descriptor)
        connection.close()
        self.cuts.append(Cut(self._kind_of(number), received, time.monotonic() - began))

    def _kind_of(self, number: int) -> str:
        return self._kinds[number % len(self._kinds)]
