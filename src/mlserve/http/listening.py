"""Taking connections: as fast as they come, or no more than this process's share of them."""

import asyncio
import socket
from collections.abc import Callable, Sequence

from mlserve.execution.worker import TaskSet
from mlserve.http.tally import Tally, may_take
from mlserve.observability.loggers import get_logger

__all__ = ["SharedListener", "listen_more"]

logger = get_logger(__name__)

_AT_ONCE = 16
_REST_S = 0.003
_REST_WITHOUT_FILES_S = 0.5


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


class SharedListener:
    """
    Takes connections from sockets on which other processes listen as well.

    Whoever wakes first would take them all, and clients that keep their connections would leave
    the other processes without work. So a process that has more connections than another leaves
    those that wait to that one, for a moment; one that does not take them is not waited for.

    Args:
        sockets: The sockets.
        connect: Makes the protocol of a connection.
        tally: Who has how many.
        index: The number of this process there.
        count: Says how many connections this process has.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        connect: Callable[[], asyncio.Protocol],
        tally: Tally,
        index: int,
        count: Callable[[], int],
    ) -> None:
        self.sockets = tuple(sockets)
        """Where it listens."""
        self._connect = connect
        self._tally = tally
        self._index = index
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._tasks = TaskSet()
        self._n_connecting = 0
        self._n_free = 1
        self._is_closed = False

    def listen(self, backlog: int) -> None:
        """
        Begin to take connections.

        Args:
            backlog: How many the system may hold for the processes.

        Raises:
            OSError: If another server listens there.
        """
        for sock in self.sockets:
            sock.setblocking(False)
            sock.listen(backlog)
            self._loop.add_reader(sock, self._take, sock)
        self.note()

    def close(self) -> None:
        """Take no more connections; those that wait are left to whoever listens as well."""
        if self._is_closed:
            return
        self._is_closed = True
        self._tally.leave(self._index)
        for sock in self.sockets:
            self._loop.remove_reader(sock)
            sock.close()

    async def wait_closed(self) -> None:
        """Wait until what was taken is connected."""
        await self._tasks.wait()

    def note(self) -> int:
        """Tell the others how many connections this process has, and give the number."""
        n_own = self._count() + self._n_connecting
        if not self._is_closed:
            self._tally.note(self._index, n_own)
        return n_own

    def _take(self, sock: socket.socket, waited_for: float | None = None) -> None:
        """
        Take what waits, until another process has fewer connections.

        Args:
            sock: Where.
            waited_for: How many that one had which what waits was left to, if it was.
        """
        n_least = self._tally.least(self._index)
        # Twice as many each time that nobody has taken what was left to him.
        n_free = self._n_free = min(2 * self._n_free, _AT_ONCE) if n_least == waited_for else 1
        for n in range(_AT_ONCE):
            if not may_take(self.note(), n_least) and (n_least != waited_for or n >= n_free):
                self._rest(sock, _REST_S, n_least)
                return
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError as exc:  # there is no descriptor left
                logger.error("connection.accept.failed", exc_info=exc)
                self._rest(sock, _REST_WITHOUT_FILES_S, None)
                return
            connection.setblocking(False)
            self._n_connecting += 1
            self._tasks.spawn(self._begin(connection))
            n_least = self._tally.least(self._index)
        self.note()

    def _rest(self, sock: socket.socket, duration_s: float, waited_for: float | None) -> None:
        """Look away for a while: the event loop would ask again at once."""
        self._loop.remove_reader(sock)
        self._loop.call_later(duration_s, self._go_on, sock, waited_for)

    def _go_on(self, sock: socket.socket, waited_for: float | None) -> None:
        if not self._is_closed:
            self._loop.add_reader(sock, self._take, sock)
            self._take(sock, waited_for)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._connect, connection)
        except OSError:  # its client has left
            connection.close()
        finally:
            self._n_connecting -= 1

    def __repr__(self) -> str:
        return f"<SharedListener {self._index} of {self._tally!r}>"
