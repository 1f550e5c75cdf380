"""Breaking requests in small ways, and sending what comes of it, many at a time."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import httpx2
from hypothesis import strategies as st
from tests.http.wire import Answered, answers_of, request_of

__all__ = ["MUTATIONS", "Mutation", "ask_all", "mutate"]

SNIPPETS = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b",", b";", b"\x00", b"\xff", b"%"),
    *(b"0", b"9", b"-1", b"+1", b"0x1", b"chunked", b"Content-Length: 0\r\n", b"Host: b\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"0\r\n\r\n", b"HTTP/1.0"),
    *(b"--b", b"--b--", b'"', b"[", b"{", b"}", b"NaN", b"\\ud800", b"1e999", b"/..", b"?", b"#"),
]
TIMEOUT_S = 10.0
LAST = request_of("GET", "/health", b"", b"Connection: close", length=False)


class Mutation(NamedTuple):
    """One change of a request."""

    kind: str
    """`flip`, `cut`, `repeat` or `insert`."""
    place: float
    """Where, as share of the whole."""
    extent: int
    """How many bytes, or which bit."""
    snippet: bytes
    """What is inserted."""


MUTATIONS: st.SearchStrategy[list[Mutation]] = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(["flip", "cut", "repeat", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 16),
        st.sampled_from(SNIPPETS) | st.binary(min_size=1, max_size=4),
    ),
    max_size=3,
)


def mutate(data: bytes, mutations: Sequence[Mutation]) -> bytes:
    """Change a request."""
    for mutation in mutations:
        start = int(mutation.place * len(data))
        end = start + mutation.extent
        match mutation.kind:
            case "flip":
                flipped = bytes(byte ^ 1 << mutation.extent % 8 for byte in data[start : start + 1])
                data = data[:start] + flipped + data[start + 1 :]
            case "cut":
                data = data[:start] + data[end:]
            case "repeat":
                data = data[:end] + data[start:]
            case _:
                data = data[:start] + mutation.snippet + data[start:]
    return data


def ask_all(client: httpx2.Client, requests: Sequence[bytes]) -> list[list[Answered]]:
    """
    Send each on a connection of its own, with a healthy request behind that closes it.

    Returns:
        All the answers to each; one of status 0 where there are none.
    """
    return asyncio.run(_ask_all(client.base_url.port or 0, requests))


async def _ask_all(port: int, requests: Sequence[bytes]) -> list[list[Answered]]:
    async with asyncio.timeout(TIMEOUT_S):
        return await asyncio.gather(*(_ask(port, request) for request in requests))


async def _ask(port: int, request: bytes) -> list[Answered]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request + LAST)
        received = await reader.read()
    except ConnectionResetError:
        received = b""
    finally:
        writer.close()
    return answers_of(received) or [Answered(0, {}, b"")]
