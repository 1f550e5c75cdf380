"""
A fleet that one process supervises and several HTTP processes use.

The supervisor has an `OwnedFleet` of each model, an HTTP process a `SharedFleet`. Between them
goes what the fleet tells its listeners, over one link for all models.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from mlserve.execution.worker import TaskSet
from mlserve.lifecycle import UNLOAD_S
from mlserve.observability.loggers import get_logger
from mlserve.processes import messages
from mlserve.processes.board import Board
from mlserve.processes.fleet import Fleet, FleetStatus, Listener
from mlserve.processes.frames import unpack
from mlserve.processes.parent import end_at_once
from mlserve.processes.process import ChildProcess
from mlserve.processes.wire import LAST_WORDS_S, Link, connect, recv_socket
from mlserve.spec import ModelSpec

__all__ = ["BEAT_S", "OwnedFleet", "SharedFleet", "Supervision"]

logger = get_logger(__name__)

BEAT_S = 1.0
"""How often an HTTP process says that its event loop turns, in seconds."""

Key = tuple[str, str]
"""A model's name and version."""


class OwnedFleet:
    """
    A fleet of the supervisor; started when the first HTTP process asks for it.

    Args:
        spec: The model.
        n_clients: How many HTTP processes there are.
        load_timeout_s: How long load and warm-up may take, in seconds.
        health_period_s: How often the `health` hook is called, in seconds.
        on_failure: Takes what the start raised, and says whether HTTP processes are told.
    """

    def __init__(
        self,
        spec: ModelSpec,
        n_clients: int,
        *,
        load_timeout_s: float | None,
        health_period_s: float,
        on_failure: Callable[[ModelSpec, Exception], bool],
    ) -> None:
        self.key: Key = spec.name, spec.version
        self._spec = spec
        self._fleet = Fleet(spec, n_clients=n_clients)
        self.n_replicas = self._fleet.board.n_replicas
        """How many replicas there may be."""
        # The fleet closes its own with its end, and HTTP processes may outlive that.
        self.board_fd = os.dup(self._fleet.board.fd)
        """The memory of its board, for HTTP processes."""
        self._load_timeout_s = load_timeout_s
        self._health_period_s = health_period_s
        self._on_failure = on_failure
        self._voices: dict[int, _Voice] = {}
        self._tasks = TaskSet()
        self._is_wanted = False
        self._outcome: tuple[Any, ...] | None = None

    def listen(self, index: int, process: ChildProcess) -> None:
        """Tell an HTTP process of the replicas from now on; start them if nobody has listened."""
        voice = self._voices[index] = _Voice(self.key, process)
        self._fleet.listen(index, voice)
        if self._outcome is not None:
            voice.send(*self._outcome)
        elif not self._is_wanted:
            self._is_wanted = True
            self._tasks.spawn(self._start())

    def note_lost(self, index: int, number: int, pid: int) -> None:
        """Learn that the way from an HTTP process to a replica has ended."""
        self._fleet.note_lost(index, number, pid)

    def leave(self, index: int) -> None:
        """Forget an HTTP process that has ended, and what it has left on the board."""
        self._voices.pop(index, None)
        self._fleet.leave(index)
        self._fleet.board.clear_client(index)

    async def close(self, timeout_s: float) -> None:
        """Have every replica unload and end; kill those that have not within the time."""
        await self._tasks.close()
        await self._end(timeout_s)
        os.close(self.board_fd)

    async def _start(self) -> None:
        try:
            n_examples = await self._fleet.start(self._load_timeout_s)
        except Exception as exc:  # noqa: BLE001 - user code may raise anything
            await self._end(UNLOAD_S)
            if not self._on_failure(self._spec, exc):
                return
            self._outcome = messages.NOT_STARTED, messages.pack_error(exc)
        else:
            self._fleet.watch_health(self._health_period_s)
            self._outcome = messages.STARTED, n_examples
        for voice in self._voices.values():
            voice.send(*self._outcome)

    async def _end(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._fleet.close()
        except TimeoutError:
            name, version = self.key
            logger.error("model.unload.abandoned", extra={"model": name, "version": version})

    def __repr__(self) -> str:
        return f"<OwnedFleet {self._fleet!r}, {len(self._voices)} HTTP processes>"


class _Voice:
    """A fleet's listener that tells an HTTP process."""

    def __init__(self, key: Key, process: ChildProcess) -> None:
        self._key = key
        self._process = process

    def send(self, kind: int, *facts: Any) -> None:
        """Send a message about the fleet."""
        self._process.send(kind, *self._key, *facts)

    def replica_up(self, number: int, sock: socket.socket) -> None:
        """
        Hand on the way to a replica; it is at the door before the message is there.

        Raises:
            OSError: If the process has just ended, or takes nothing.
        """
        with sock:
            self._process.pass_socket(number, sock)
        self.send(messages.REPLICA_UP, number)

    def note_status(self, status: FleetStatus) -> None:
        """Tell how the replicas are."""
        self.send(messages.STATUS, status)

    def note_progress(self, number: int, fraction: float, note: str) -> None:
        """Tell how far a load has come."""
        self.send(messages.REPLICA_PROGRESS, number, fraction, note)

    def note_warming(self) -> None:
        """Tell that a replica was loaded."""
        self.send(messages.LOADED)


class SharedFleet:
    """
    A fleet of the supervisor, as an HTTP process sees it. Lives on that process's event loop.

    Args:
        board: The figures that its processes share.
        tell: Sends the supervisor a message about the fleet.
    """

    def __init__(self, board: Board, tell: Callable[..., None]) -> None:
        self.board = board
        self._tell = tell
        self._listener: Listener | None = None
        self._started: asyncio.Future[int]

    def listen(self, index: int, listener: Listener) -> None:
        """Ask for the replicas and tell who listens of them."""
        self._started = asyncio.get_running_loop().create_future()
        self._listener = listener
        self._tell(messages.LISTEN)

    async def start(self, load_timeout_s: float | None) -> int:
        """
        Wait until all replicas can serve; the supervisor sees to the time that this may take.

        Returns:
            With how many examples each was warmed up.

        Raises:
            Exception: Why they cannot.
        """
        return await self._started

    def note_lost(self, index: int, number: int, pid: int) -> None:
        """Ask for another way to a replica; the supervisor knows the process that asks."""
        if self._listener is not None:
            self._tell(messages.LOST, number, pid)

    def watch_health(self, period_s: float) -> None:
        """Do nothing: the supervisor has each replica call its `health` hook."""

    async def close(self) -> None:
        """Hear nothing any more; the replicas go on for the others."""
        self._listener = None

    def take_replica(self, number: int, sock: socket.socket) -> None:
        """Take the way to a replica."""
        if self._listener is not None:
            self._listener.replica_up(number, sock)
        else:
            sock.close()

    def take(self, kind: int, *facts: Any) -> None:
        """Take what else the supervisor says of it."""
        listener = self._listener
        if listener is None:
            return
        if kind == messages.STATUS:
            listener.note_status(*facts)
        elif kind == messages.REPLICA_PROGRESS:
            listener.note_progress(*facts)
        elif kind == messages.LOADED:
            listener.note_warming()
        elif self._started.done():
            return
        elif kind == messages.STARTED:
            self._started.set_result(facts[0])
        elif kind == messages.NOT_STARTED:
            self._started.set_exception(unpack(facts[0]))

    def __repr__(self) -> str:
        return f"<SharedFleet [{'in use' if self._listener is not None else 'closed'}]>"


class Supervision:
    """
    The way from an HTTP process to its supervisor, without which it does not live.

    Args:
        control: The socket of the supervisor's messages.
        door: The socket by which those that lead to replicas come.
    """

    def __init__(self, control: socket.socket, door: socket.socket) -> None:
        self._control = control
        self._door = door
        self._door.setblocking(False)
        self._link = Link(self._receive, self._lost)
        self._fleets: dict[Key, SharedFleet] = {}
        self._tasks = TaskSet()
        self._is_closed = False

    def share(self, key: Key, board: Board) -> SharedFleet:
        """Give the fleet of a model."""
        fleet = self._fleets[key] = SharedFleet(board, partial(self._tell, key))
        return fleet

    async def open(self) -> None:
        """Talk to the supervisor from now on, on the running event loop."""
        await connect(self._control, self._link)
        self._tasks.spawn(self._keep_beating())

    def note_serving(self) -> None:
        """Say that connections are taken."""
        self._link.send((messages.SERVING,))

    async def close(self) -> None:
        """End without the supervisor's help."""
        self._is_closed = True
        await self._tasks.close()
        await self._link.drain_and_close(LAST_WORDS_S)

    def _tell(self, key: Key, kind: int, *facts: Any) -> None:
        self._link.send((kind, *key, *facts))

    async def _keep_beating(self) -> None:
        while True:
            self._link.send((messages.BEAT,))
            await asyncio.sleep(BEAT_S)

    def _receive(self, received: list[tuple[Any, ...]]) -> None:
        for kind, name, version, *facts in received:
            fleet = self._fleets[name, version]
            if kind != messages.REPLICA_UP:
                fleet.take(kind, *facts)
                continue
            try:
                passed = recv_socket(self._door)
            except OSError as exc:  # too many files are open
                logger.error("replica.introduce.failed", exc_info=exc)
                self._tell((name, version), messages.LOST, *facts, 0)
            else:
                if passed is not None:
                    fleet.take_replica(*passed)

    def _lost(self) -> None:
        if not self._is_closed:
            end_at_once()

    def __repr__(self) -> str:
        return f"<Supervision of {len(self._fleets)} fleets>"
