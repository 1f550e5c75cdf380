"""Loops against servers of a few lines."""

import asyncio
import random

from mlserve.loadtest.connection import LOST, Answer, Target
from mlserve.loadtest.loops import closed_loop, connected, open_loop


class _Server:
    """Answers each request with its body's length, or with nothing at all."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self.n_connections = 0
        self.bodies: list[bytes] = []
        self._is_silent = is_silent

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                if not self._is_silent:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


async def _listening(server: _Server) -> tuple[asyncio.Server, str]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    return listener, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"


def test_several_bodies_are_sent_in_turn() -> None:
    server, answers = _Server(), list[Answer]()

    async def ask() -> None:
        listener, url = await _listening(server)
        async with listener:
            await closed_loop(Target(url, b"1", more=(b"22", b"333")), 1, 0.1, answers.append)

    asyncio.run(ask())

    n = len(server.bodies)
    assert n == len(answers) >= 3
    assert server.bodies == [b"1", b"22", b"333"] * (n // 3) + [b"1", b"22", b"333"][: n % 3]


def test_an_open_loop_gives_up_what_does_not_come_in_time() -> None:
    server, answers = _Server(is_silent=True), list[Answer]()

    async def ask() -> None:
        listener, url = await _listening(server)
        async with listener:
            await asyncio.wait_for(
                open_loop(Target(url, b"1"), 200, 0.2, answers.append, random.Random(1), 0.05), 5
            )

    asyncio.run(ask())

    assert len(answers) > 5
    assert {answer.status for answer in answers} == {LOST}


def test_an_open_loop_uses_the_connections_that_are_there() -> None:
    server, answers = _Server(), list[Answer]()

    async def ask() -> None:
        listener, url = await _listening(server)
        async with listener:
            target = Target(url, b"1")
            ready = await connected(target, 20)
            await open_loop(target, 100, 0.1, answers.append, random.Random(1), ready=ready)

    asyncio.run(ask())

    assert server.n_connections == 20
    assert {answer.status for answer in answers} == {200}


def test_connections_that_cannot_be_opened_are_left_out() -> None:
    async def connect() -> int:
        listener, url = await _listening(_Server())
        listener.close()
        await listener.wait_closed()
        return len(await connected(Target(url, b"1"), 3))

    assert asyncio.run(connect()) == 0
