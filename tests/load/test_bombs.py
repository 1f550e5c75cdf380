"""Heads and bodies without end: they are refused early and never gathered in memory."""

import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.faults.processes import ServedProcess, serving
from tests.figures import note
from tests.load.crowd import ECHO, HEAD, HEALTH, connect, forget_peak, memory_mb, peak_memory_mb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MB = 1_000_000
PIECE = b"a" * 65_536
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

# What is sent first, what is repeated after it, how much of it, and the statuses that may follow.
BOMBS = {
    "one header": (HEAD + b"x: ", PIECE, 50 * MB, {431}),
    "one name of a header": (HEAD, PIECE, 50 * MB, {400, 431}),
    "200,000 headers": (HEAD, b"x: 1\r\n" * 1000, 200_000 * 6, {431}),
    "folded lines": (HEAD + b"x: 1\r\n", b" 1\r\n" * 10_000, 50 * MB, {400}),
    "a target": (b"GET /", PIECE, 50 * MB, {400, 414, 431}),
    "a method": (b"", b"A" * 65_536, 50 * MB, {400}),
    "empty lines": (b"", b"\r\n" * 32_768, 50 * MB, set[int]()),
    "a million chunks of one byte": (CHUNKED, b"1\r\na\r\n" * 10_000, 6 * MB, {413}),
    "an extension of a chunk": (CHUNKED + b"1;", PIECE, 50 * MB, {400}),
    "a size of a chunk": (CHUNKED, b"0" * 65_536, 50 * MB, {400}),
    "trailers": (CHUNKED + b"0\r\n", b"x: 1\r\n" * 10_000, 50 * MB, {431}),
    "one trailer": (CHUNKED + b"0\r\nx: ", PIECE, 50 * MB, {400, 431}),
    "a body": (HEAD + b"Content-Length: 1000000000\r\n\r\n", PIECE, 300 * MB, {413}),
    "chunks": (CHUNKED, b"10000\r\n" + PIECE + b"\r\n", 300 * MB, {413}),
}
LARGEST_BODY_MB = 16  # as it may be received before it is too large


@pytest.fixture(scope="module")
def served() -> Iterator[ServedProcess]:
    with serving("tests.load.served:app", MLSERVE_HEAD_TIMEOUT_S=1) as served:
        yield served


def pour(port: int, start: bytes, piece: bytes, n_bytes: int) -> bytes:
    """Send as much as the server takes, and give its answer."""
    received = b""
    with connect(port) as connection, suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(start)
        for _ in range(n_bytes // len(piece)):
            connection.sendall(piece)
        while part := connection.recv(65_536):
            received += part
    return received


@pytest.mark.parametrize("name", BOMBS)
def test_what_has_no_end_is_refused_and_takes_no_memory(served: ServedProcess, name: str) -> None:
    start, piece, n_bytes, statuses = BOMBS[name]
    with connect(served.port) as other:
        other.sendall(ECHO)
        assert other.recv(1000)
        memory = memory_mb(served.process.pid)
        forget_peak(served.process.pid)

        received = pour(served.port, start, piece, n_bytes)

        other.sendall(HEALTH)
        assert other.recv(1000).startswith(b"HTTP/1.1 200 ")
    more_mb = peak_memory_mb(served.process.pid) - memory
    note("bomb", more_mb=more_mb)
    assert more_mb < LARGEST_BODY_MB + 10
    assert received.count(b"HTTP/1.1 ") == bool(statuses)
    assert not statuses or int(received[9:12]) in statuses
