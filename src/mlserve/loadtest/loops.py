"""
Loops that send requests: closed, where each client waits for its answer, and open, where they come.

In an open loop a request is due at its time whether or not the server, or this client, has come to
it, and its latency counts from then: a server that stands still is not asked less (no coordinated
omission, Tene 2013).
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence

from mlserve.loadtest.connection import LOST, Answer, Connection, Target

__all__ = ["closed_loop", "connected", "open_loop"]

Note = Callable[[Answer], None]

_MAX_CONNECTIONS = 4_000


async def closed_loop(target: Target, n_clients: int, seconds: float, note: Note) -> None:
    """
    Have so many clients send the next request as soon as the one before is answered.

    Args:
        target: What they ask.
        n_clients: How many, each with a connection of its own.
        seconds: How long; what is asked by then is waited for.
        note: Told of each answer as it comes.
    """
    requests = target.requests()
    until = time.perf_counter() + seconds

    async def client() -> None:
        connection: Connection | None = None
        while time.perf_counter() < until:
            now = time.perf_counter()
            if connection is None or connection.is_lost:
                try:
                    connection = await Connection.open(target)
                except OSError:
                    note(Answer(now, LOST, time.perf_counter()))
                    await asyncio.sleep(0.05)  # nobody listens: do not ask in vain all the time
                    continue
            note(await connection.ask(next(requests), now))
        if connection is not None:
            connection.close()

    await asyncio.gather(*(client() for _ in range(n_clients)))


async def open_loop(
    target: Target,
    per_s: float,
    seconds: float,
    note: Note,
    dice: random.Random,
    patience_s: float | None = None,
    ready: Sequence[Connection] = (),
) -> int:
    """
    Send requests at random times (Poisson), however the server fares.

    Args:
        target: What is asked.
        per_s: How many requests per second on average.
        seconds: How long; what is asked by then is waited for.
        note: Told of each answer as it comes.
        dice: Gives the times.
        patience_s: How long the last answers are waited for, in seconds; what has not come by then
            is lost. `None` = until they are there.
        ready: Connections that are there already, as a client has them that keeps a pool; more are
            opened when they are needed.

    Returns:
        How many requests could not be sent, since all connections were waiting for answers.
    """
    sender = _Sender(target, note, ready)
    due_at = time.perf_counter()
    until = due_at + seconds
    while (due_at := due_at + dice.expovariate(per_s)) < until:
        if (ahead_s := due_at - time.perf_counter()) > 0:
            await asyncio.sleep(ahead_s)
        sender.send(due_at)
    await sender.finish(patience_s)
    return sender.n_unsent


async def connected(target: Target, n: int) -> list[Connection]:
    """Open so many connections; those that fail are left out."""
    opened = await asyncio.gather(
        *(Connection.open(target) for _ in range(n)), return_exceptions=True
    )
    return [connection for connection in opened if isinstance(connection, Connection)]


class _Sender:
    """Sends each request on an idle connection, or on a new one."""

    def __init__(self, target: Target, note: Note, ready: Sequence[Connection]) -> None:
        self.n_unsent = 0
        self._target = target
        self._requests = target.requests()
        self._note = note
        self._idle = deque(ready)
        self._tasks: set[asyncio.Task[None]] = set()
        self._n_open = len(ready)

    def send(self, due_at: float) -> None:
        while self._idle and self._idle[-1].is_lost:
            self._idle.pop()
            self._n_open -= 1
        if not self._idle and self._n_open >= _MAX_CONNECTIONS:
            self.n_unsent += 1
            return
        connection = self._idle.pop() if self._idle else None
        if connection is None:
            self._n_open += 1
        task = asyncio.get_running_loop().create_task(self._ask(connection, due_at))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, patience_s: float | None) -> None:
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in self._idle:
            connection.close()

    async def _ask(self, connection: Connection | None, due_at: float) -> None:
        if connection is None:
            try:
                connection = await Connection.open(self._target)
            except (OSError, asyncio.CancelledError):
                self._n_open -= 1
                self._note(Answer(due_at, LOST, time.perf_counter()))
                return
        try:
            self._note(await connection.ask(next(self._requests), due_at))
        except asyncio.CancelledError:
            connection.close()
            self._note(Answer(due_at, LOST, time.perf_counter()))
            return
        self._idle.append(connection)
