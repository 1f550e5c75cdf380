"""What an HTTP process hears of the replicas that its supervisor has."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from mlserve.errors import ModelError
from mlserve.processes import messages
from mlserve.processes.board import Board
from mlserve.processes.fleet import FleetStatus
from mlserve.processes.frames import unpack
from mlserve.processes.sharing import SharedFleet, Supervision, _Voice
from mlserve.processes.wire import Link, connect, send_socket

KEY = ("m", "v1")


@dataclass
class Listening:
    """A listener that keeps what it hears."""

    heard: list[tuple[Any, ...]] = field(default_factory=list)

    def replica_up(self, number: int, sock: socket.socket) -> None:
        self.heard.append(("up", number, sock.recv(10)))
        sock.close()

    def note_status(self, status: FleetStatus) -> None:
        self.heard.append(("status", status))

    def note_progress(self, number: int, fraction: float, note: str) -> None:
        self.heard.append(("progress", number, fraction, note))

    def note_warming(self) -> None:
        self.heard.append(("warming",))


class Supervisor:
    """The other end."""

    def __init__(self, door: socket.socket) -> None:
        self.door = door
        self.received: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.link = Link(self._receive, lambda: None)

    def tell(self, kind: int, *facts: Any) -> None:
        self.link.send((kind, *KEY, *facts))

    async def next_of(self, kind: int) -> tuple[Any, ...]:
        async with asyncio.timeout(5):
            while (message := await self.received.get())[0] != kind:
                pass
        return message

    def _receive(self, received: list[tuple[Any, ...]]) -> None:
        for message in received:
            self.received.put_nowait(message)


@asynccontextmanager
async def supervised() -> AsyncIterator[tuple[Supervisor, Supervision, SharedFleet]]:
    """Connect an HTTP process with a supervisor."""
    ours, control = socket.socketpair()
    our_door, door = socket.socketpair()
    supervisor, supervision = Supervisor(our_door), Supervision(control, door)
    fleet = supervision.share(KEY, Board.create(2, 2))
    await connect(ours, supervisor.link)
    await supervision.open()
    with our_door, door:
        try:
            yield supervisor, supervision, fleet
        finally:
            await supervision.close()
            await supervisor.link.drain_and_close(1)


async def started(fleet: SharedFleet) -> int:
    async with asyncio.timeout(5):
        return await fleet.start(None)


def test_a_process_asks_and_hears_what_becomes_of_the_replicas() -> None:
    status = FleetStatus(is_recovering=False, serving=frozenset({1}), load_s=0.5)
    listening = Listening()

    async def run() -> int:
        async with supervised() as (supervisor, _, fleet):
            fleet.listen(1, listening)
            assert await supervisor.next_of(messages.LISTEN) == (messages.LISTEN, *KEY)
            supervisor.tell(messages.REPLICA_PROGRESS, 0, 0.5, "half")
            supervisor.tell(messages.LOADED)
            for number in range(2):
                ours, theirs = socket.socketpair()
                with ours, theirs:
                    ours.send(f"hello {number}".encode())
                    send_socket(supervisor.door, number, theirs)
                supervisor.tell(messages.REPLICA_UP, number)
            supervisor.tell(messages.STATUS, status)
            supervisor.tell(messages.STARTED, 3)
            return await started(fleet)

    assert asyncio.run(run()) == 3
    assert listening.heard == [
        ("progress", 0, 0.5, "half"),
        ("warming",),
        ("up", 0, b"hello 0"),
        ("up", 1, b"hello 1"),
        ("status", status),
    ]


@pytest.mark.parametrize("error", [OSError("There are no weights."), ModelError()])
def test_a_start_that_fails_raises_what_it_raised(error: Exception) -> None:
    async def run() -> None:
        async with supervised() as (supervisor, _, fleet):
            fleet.listen(0, Listening())
            supervisor.tell(messages.NOT_STARTED, messages.pack_error(error))
            await started(fleet)

    with pytest.raises(type(error)) as caught:
        asyncio.run(run())
    assert str(caught.value) == str(error)


def test_a_process_that_has_lost_its_way_to_a_replica_asks_for_another_one() -> None:
    async def run() -> tuple[Any, ...]:
        async with supervised() as (supervisor, _, fleet):
            fleet.listen(1, Listening())
            fleet.note_lost(1, 0, 4711)
            return await supervisor.next_of(messages.LOST)

    assert asyncio.run(run()) == (messages.LOST, *KEY, 0, 4711)


def test_a_process_that_has_no_descriptor_for_a_way_asks_for_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(door: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def run() -> tuple[Any, ...]:
        async with supervised() as (supervisor, _, fleet):
            fleet.listen(1, Listening())
            monkeypatch.setattr("mlserve.processes.sharing.recv_socket", refuse)
            supervisor.tell(messages.REPLICA_UP, 1)
            return await supervisor.next_of(messages.LOST)

    assert asyncio.run(run()) == (messages.LOST, *KEY, 1, 0)


def test_a_way_that_cannot_be_handed_on_is_closed_and_offered_again() -> None:
    class Full:
        def pass_socket(self, tag: int, sock: socket.socket) -> None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    process: Any = Full()
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(BlockingIOError):
        _Voice(KEY, process).replica_up(0, theirs)

    assert theirs.fileno() == -1


def test_a_fleet_that_is_closed_hears_nothing_and_keeps_no_socket() -> None:
    listening = Listening()

    async def run() -> bytes:
        async with supervised() as (supervisor, _, fleet):
            fleet.listen(0, listening)
            await fleet.close()
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    send_socket(supervisor.door, 0, theirs)
                supervisor.tell(messages.REPLICA_UP, 0)
                supervisor.tell(messages.STATUS, FleetStatus())
                ours.setblocking(False)
                async with asyncio.timeout(5):
                    return await asyncio.get_running_loop().sock_recv(ours, 1)

    assert asyncio.run(run()) == b""
    assert listening.heard == []


def test_a_process_says_that_it_serves_and_goes_on_living() -> None:
    async def run() -> None:
        async with supervised() as (supervisor, supervision, _):
            supervision.note_serving()
            await supervisor.next_of(messages.SERVING)
            await supervisor.next_of(messages.BEAT)

    asyncio.run(run())


def test_an_error_that_cannot_be_sent_arrives_as_its_text() -> None:
    class LocalError(Exception):
        pass

    error = unpack(messages.pack_error(LocalError("Nobody else knows me.")))

    assert isinstance(error, RuntimeError)
    assert str(error) == "LocalError: Nobody else knows me."
