"""Taking connections as fast as they come."""

import asyncio
import socket

import pytest

from mlserve.http.listening import listen_more

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
