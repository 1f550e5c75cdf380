"""Taking connections as fast as they come, however busy the event loop is."""

import asyncio
import socket
from collections.abc import Callable, Sequence

__all__ = ["listen_more"]

_AT_ONCE = 16


async def listen_more(
    servers: Sequence[asyncio.AbstractServer],
    connect: Callable[[], asyncio.Protocol],
    backlog: int,
) -> list[asyncio.Server]:
    """
    Listen on the same sockets several times over, where the event loop accepts one at a time.

    libuv takes one connection from a listener in each turn of the loop. Under heavy load a turn
    takes tens of milliseconds, and a probe's connection would wait for seconds behind those of
    clients. The price is a system call in vain by each listener for a connection that comes alone.

    Args:
        servers: What listens.
        connect: Makes the protocol of a connection.
        backlog: How many connections the system may hold for us.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.BaseEventLoop):  # Python's own takes all that wait
        return []
    return [
        await loop.create_server(connect, sock=twin, backlog=backlog)
        for server in servers
        for listener in getattr(server, "sockets", ())
        for twin in _twins(listener)
    ]


def _twins(listener: socket.socket) -> list[socket.socket]:
    return [
        socket.fromfd(listener.fileno(), listener.family, listener.type)
        for _ in range(_AT_ONCE - 1)
    ]
