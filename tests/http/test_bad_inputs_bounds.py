"""What large inputs may cost: little time of the event loop, and little memory."""

import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.faults.processes import serving
from tests.http.answers import error_of
from tests.http.wire import TALLY, answers_of, complaint_of

from mlserve import ModelHandler, ModelServer
from mlserve.testing import running

pytestmark = pytest.mark.slow

LIMIT_BYTES = 16 * 2**20
"""The default of `Limits.max_body_bytes`."""
UNDERWAY_BYTES = 16 * 2**20
"""How much a sender may have sent that the server has not read: it is in the system's buffers."""
LONGEST_BLOCK_S = 2.0
POST = b"POST /v1/models/%s/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b" " * 65_536 + b"\r\n"
BYTE_CHUNKS = b"1\r\n \r\n" * 10_000
JSON = {"Content-Type": "application/json"}


class Take(ModelHandler[list[int | list[float] | bool], int]):
    def infer(self, inputs: list[Any]) -> list[int]:
        return list(map(len, inputs))


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with running(ModelServer().add("m", Take)) as client:
        yield client


class Flooded(NamedTuple):
    """What became of a request that was sent until there was an answer."""

    status: int
    n_sent: int


def flood(port: int, head: bytes, pieces: Iterable[bytes] = ()) -> Flooded:
    """Send until there is an answer, and read it."""
    n_sent = 0
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            for piece in chain([head], pieces):
                if select.select([connection], [], [], 0)[0]:
                    break
                connection.sendall(piece)
                n_sent += len(piece)
            received = b"".join(iter(lambda: connection.recv(65_536), b""))
        except (BrokenPipeError, ConnectionResetError):  # refused, and closed after a second
            received = b""
    (answer,) = answers_of(received)
    TALLY.count(head + str(n_sent).encode(), answer.status, len(answer.body))
    assert complaint_of(answer) is None
    return Flooded(answer.status, n_sent)


def test_a_gigabyte_is_refused_before_any_of_it_is_read(client: httpx2.Client) -> None:
    head = POST % b"m" + b"Content-Length: 1000000000\r\n\r\n"

    flooded = flood(client.base_url.port or 0, head)

    assert flooded == (413, len(head))


def test_a_body_in_chunks_is_cut_off_at_the_limit(client: httpx2.Client) -> None:
    flooded = flood(client.base_url.port or 0, CHUNKED % b"m", repeat(CHUNK))

    assert flooded.status == 413
    assert flooded.n_sent < LIMIT_BYTES + UNDERWAY_BYTES


def test_a_million_chunks_of_a_byte_are_refused(client: httpx2.Client) -> None:
    flooded = flood(client.base_url.port or 0, CHUNKED % b"m", repeat(BYTE_CHUNKS, 100))

    assert flooded.status == 413


WRONG = {
    "1e5 wrong items": b"[" + b'"a",' * 100_000 + b"null]",
    "4e6 wrong items": b"[" + b'"a",' * 4_000_000 + b"null]",
    "5e6 empty objects": b"[" + b"{}," * 5_000_000 + b"null]",
    "16 MB of text": b'"' + b"a" * 16_000_000 + b'"',
    "16 MB of digits": b"[" + b"9" * 16_000_000 + b"]",
    "16 MB of brackets": b"[" * 16_000_000,
    "16 MB of spaces": b" " * 16_000_000,
    "16 MB of NaN": b"[" + b"NaN," * 4_000_000 + b"NaN]",
}


@pytest.mark.parametrize("name", WRONG)
def test_others_are_answered_while_a_large_wrong_body_is_refused(
    client: httpx2.Client, name: str
) -> None:
    answers: list[httpx2.Response] = []
    waits_s: list[float] = []

    def send() -> None:
        answers.append(client.post("/v1/models/m/predict", content=WRONG[name], headers=JSON))

    with httpx2.Client(base_url=client.base_url, timeout=10) as other:
        sender = threading.Thread(target=send)
        sender.start()
        while sender.is_alive():
            started = time.monotonic()
            assert other.get("/health").status_code == 200
            waits_s.append(time.monotonic() - started)
        sender.join(10)

    [answer] = answers
    error_of(answer, answer.status_code, answer.json()["error"]["code"])
    assert answer.status_code in (400, 422)
    assert len(answer.json().get("detail", [])) <= 10
    assert max(waits_s) < LONGEST_BLOCK_S


def resident_bytes(pid: int, what: str) -> int:
    """Read how much memory a process has (`VmRSS`), or had at most (`VmHWM`)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kibibytes] = [line.split()[1] for line in lines if line.startswith(f"{what}:")]
    return int(kibibytes) * 1024


MODEL = b"single"
MEGABYTE = 2**20
FLOODS: dict[str, tuple[bytes, Iterable[bytes]]] = {
    "a header of 50 MB": (POST % MODEL + b"X: ", repeat(b"a" * MEGABYTE, 50)),
    "a name of 50 MB": (POST % MODEL, repeat(b"a" * MEGABYTE, 50)),
    "200,000 headers": (POST % MODEL, repeat(b"a: b\r\n" * 20_000, 10)),
    "a path of 50 MB": (b"GET /", repeat(b"a" * MEGABYTE, 50)),
    "a method of 50 MB": (b"A", repeat(b"A" * MEGABYTE, 50)),
    "a length of a gigabyte": (
        POST % MODEL + b"Content-Length: 1000000000\r\n\r\n",
        repeat(b"a" * MEGABYTE, 50),
    ),
    "chunks without an end": (CHUNKED % MODEL, repeat(CHUNK)),
    "one chunk without an end": (CHUNKED % MODEL + b"40000000\r\n", repeat(b"a" * MEGABYTE)),
    "a million chunks": (CHUNKED % MODEL, repeat(BYTE_CHUNKS, 100)),
    "an extension of 50 MB": (CHUNKED % MODEL + b"1;", repeat(b"a" * MEGABYTE, 50)),
    "trailers of 50 MB": (CHUNKED % MODEL + b"0\r\nX: ", repeat(b"a" * MEGABYTE, 50)),
    "a body for a path that is not there": (
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000000000\r\n\r\n",
        repeat(b"a" * MEGABYTE, 50),
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_grows_by_less_than_twice_the_limit_whatever_is_sent() -> None:
    with serving() as served:
        pid, port = served.process.pid, served.port
        flood(port, CHUNKED % MODEL + b"zz\r\n")  # whatever is imported late is imported now
        before = resident_bytes(pid, "VmRSS")
        statuses = {
            name: flood(port, head, pieces).status for name, (head, pieces) in FLOODS.items()
        }
        most = resident_bytes(pid, "VmHWM")
        log = served.log()

    assert set(statuses.values()) <= {400, 404, 413, 431}, statuses
    assert most - before < 2 * LIMIT_BYTES
    assert "Traceback" not in log
