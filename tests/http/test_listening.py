"""Taking connections: as fast as they come, or no more than a share of them."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mlserve.http.listening import SharedListener, listen_more
from mlserve.http.tally import Tally

uvloop = pytest.importorskip("uvloop")

N_WAITING = 60
N_TURNS = 8


class Counting(asyncio.Protocol):
    n_made = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Counting.n_made += 1


async def n_taken(*, more: bool) -> tuple[int, int]:
    """Say how many of many waiting connections are taken in few turns, and how many listen."""
    Counting.n_made = 0
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Counting, "127.0.0.1", 0, backlog=N_WAITING)
    servers = [server, *(await listen_more([server], Counting, N_WAITING) if more else ())]
    waiting = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(N_WAITING)]
    for _ in range(N_TURNS):
        await asyncio.sleep(0)
    n_made = Counting.n_made
    for connection in waiting:
        connection.close()
    for listening in servers:
        listening.close()
    return n_made, len(servers)


def test_many_connections_are_taken_in_a_turn_where_the_loop_takes_one() -> None:
    alone, _ = uvloop.run(n_taken(more=False))
    together, n_servers = uvloop.run(n_taken(more=True))

    assert alone <= N_TURNS
    assert together == N_WAITING
    assert n_servers == 16


def test_a_loop_that_takes_all_at_once_is_left_alone() -> None:
    taken, n_servers = asyncio.run(n_taken(more=True))

    assert (taken, n_servers) == (N_WAITING, 1)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


class Sharing:
    """
    Processes that listen on one socket, in one event loop.

    Args:
        n: How many.
    """

    def __init__(self, n: int) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=N_WAITING)
        self.tally, fd = Tally.create(n)
        os.close(fd)
        self.taken: list[list[asyncio.BaseTransport]] = [[] for _ in range(n)]
        self.clients: list[socket.socket] = []
        self.listeners: list[SharedListener] = []
        self.has_taken = asyncio.Event()

    def listen(self, index: int, sock: socket.socket | None = None) -> SharedListener:
        taken, has_taken = self.taken[index], self.has_taken

        class Taking(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                taken.append(transport)
                has_taken.set()

        listener = SharedListener(
            [sock or self.socket.dup()], Taking, self.tally, index, lambda: len(taken)
        )
        listener.listen(N_WAITING)
        self.listeners.append(listener)
        return listener

    async def connect(self, n: int) -> None:
        """Make connections and wait until all of them are taken."""
        n_before = len(self.clients)
        self.clients += [socket.create_connection(self.socket.getsockname()) for _ in range(n)]
        async with asyncio.timeout(5):
            while sum(map(len, self.taken)) < n_before + n:
                self.has_taken.clear()
                await self.has_taken.wait()

    def counts(self) -> list[int]:
        return [len(taken) for taken in self.taken]

    async def close(self) -> None:
        for listener in self.listeners:
            listener.close()
            await listener.wait_closed()
        for taken in self.taken:
            for transport in taken:
                transport.close()
        for client in (*self.clients, self.socket):
            client.close()
        await asyncio.sleep(0)


def test_processes_share_the_connections_that_come_at_once(run: Run) -> None:
    async def share() -> list[int]:
        sharing = Sharing(3)
        for index in range(3):
            sharing.listen(index)
        await sharing.connect(N_WAITING)
        counts = sharing.counts()
        await sharing.close()
        return counts

    counts = run(share())

    assert sum(counts) == N_WAITING
    assert max(counts) - min(counts) <= 1 + N_WAITING // 8


def test_one_that_takes_nothing_is_not_waited_for(run: Run) -> None:
    async def share() -> list[int]:
        sharing = Sharing(2)
        sharing.tally.note(1, 0)  # it listens, and hangs
        sharing.listen(0)
        await sharing.connect(N_WAITING)
        counts = sharing.counts()
        await sharing.close()
        return counts

    assert run(share()) == [N_WAITING, 0]


def test_a_new_process_catches_up_with_the_others(run: Run) -> None:
    async def share() -> list[int]:
        sharing = Sharing(2)
        sharing.listen(0)
        await sharing.connect(20)
        sharing.listen(1)
        await sharing.connect(20)
        counts = sharing.counts()
        await sharing.close()
        return counts

    first, second = run(share())

    assert first + second == 40
    assert second >= 16


def test_one_that_is_closed_takes_nothing_and_is_not_waited_for(run: Run) -> None:
    async def share() -> tuple[list[int], float]:
        sharing = Sharing(2)
        sharing.listen(0)
        sharing.listen(1).close()
        await sharing.connect(10)
        counts, n_least = sharing.counts(), sharing.tally.least(0)
        await sharing.close()
        return counts, n_least

    assert run(share()) == ([10, 0], float("inf"))


class Exhausted(socket.socket):
    """Listens in a process that has too many open files, for a while."""

    n_refusals = 2

    def accept(self) -> tuple[socket.socket, Any]:
        if self.n_refusals:
            self.n_refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_connections_that_find_no_file_free_wait_for_one(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def share() -> list[int]:
        sharing = Sharing(1)
        sharing.listen(0, Exhausted(fileno=sharing.socket.dup().detach()))
        await sharing.connect(3)
        counts = sharing.counts()
        await sharing.close()
        return counts

    assert run(share()) == [3]
    assert [record.message for record in caplog.records] == ["connection.accept.failed"] * 2
