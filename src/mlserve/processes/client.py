"""
A replica in another process, as an HTTP process sees it. Lives on the HTTP process's event loop.

It keeps every request that it has sent until the answer is there, so that none is lost with the
replica.
"""

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlserve.errors import ModelError
from mlserve.job import Job
from mlserve.observability.loggers import get_logger
from mlserve.processes import messages
from mlserve.processes.board import N_SLOTS, Board, Cause, Mark
from mlserve.processes.frames import Parcel, pack, unpack
from mlserve.processes.guest import FIRST_CREDIT
from mlserve.processes.wire import LAST_WORDS_S, Link, connect
from mlserve.streaming import Channel

__all__ = ["ReplicaClient", "Sender", "Ticket"]

logger = get_logger(__name__)

_CREDIT_AT_ONCE = FIRST_CREDIT // 2


@dataclass(slots=True, eq=False)
class Ticket:
    """A request on its way to a replica, for as long as somebody waits for it."""

    job: Job
    """The request; its payload is as the client sent it."""
    channel: Channel[Any] | None = None
    """Where its chunks go, if it is streamed."""
    is_alone: bool = False
    """Whether a replica has died running it, so that it may only run alone."""
    n_chunks: int = 0
    """How many chunks have come."""
    n_taken: int = 0
    """How many of them were read since the replica was last told."""
    client: "ReplicaClient | None" = None
    """The replica that has it."""
    number: int = 0
    """What it is called there."""
    slot: int = -1
    """Where it is marked on the board."""

    def allow_more(self) -> None:
        """Note that a chunk was read."""
        if self.client is not None:
            self.client.allow_more(self)


class Sender(Protocol):
    """The lane, as a client of a replica sees it."""

    def note_lost(self, client: "ReplicaClient") -> None:
        """Learn that the replica has ended, with what it had."""

    def note_state(self, client: "ReplicaClient") -> None:
        """Learn that the replica takes work, or does no longer."""

    def send_again(self, ticket: Ticket) -> None:
        """Find another replica for a request."""


class ReplicaClient:
    """
    The way to one replica.

    Args:
        sender: Told what becomes of the replica.
        number: The replica's number.
        board: The figures that the processes share.
        index: The number of this HTTP process.
        model: The model's name.
    """

    def __init__(self, sender: Sender, number: int, board: Board, index: int, model: str) -> None:
        self.number = number
        self.tickets: dict[int, Ticket] = {}
        """What it has and has not answered, by the number that it has there."""
        self.is_open = True
        """Whether it takes work."""
        self._sender = sender
        self._model = model
        self._link = Link(self._receive, self._lost, lambda: sender.note_state(self))
        self._numbers = itertools.count(1)
        self._marks = board.marks(index, number)
        self._row = board.replicas[number]
        self._sent = board.clients[index].sent
        self._n_slots = 0
        self._free: deque[int] = deque()
        self._ended = asyncio.Event()

    async def connect(self, sock: socket.socket, previous: "ReplicaClient | None") -> None:
        """
        Begin to talk to it.

        Args:
            sock: The way to it.
            previous: Who had its number, and has ended: where its requests were is to be seen
                before that is wiped out.
        """
        try:
            if previous is not None:
                await previous.wait_ended()
        except BaseException:
            sock.close()
            raise
        self._marks[:] = bytes(len(self._marks))
        await connect(sock, self._link)

    async def wait_ended(self) -> None:
        """Wait until all is heard that a replica has said which has died, and what it had moves."""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._ended.wait()
        except TimeoutError:  # somebody that it has started holds its socket
            self.close()
            await self._ended.wait()

    @property
    def takes_work(self) -> bool:
        """Whether it takes work now: each request that it has is to have its mark."""
        has_slot = self._n_slots < N_SLOTS or bool(self._free)
        return self.is_open and has_slot and not self._link.is_congested

    @property
    def was_hung(self) -> bool:
        """Whether it was ended because a hook did not return."""
        return bool(self._row.cause == Cause.HANG)

    def submit(self, ticket: Ticket) -> None:
        """Send a request; only while it takes work."""
        job = ticket.job
        try:
            payload = pack(job.payload)
        except Exception as exc:
            logger.error("request.pack.failed", exc_info=exc, extra={"model": self._model})
            job.fail(ModelError("The request cannot be sent to the model's process."))
            return
        number = next(self._numbers)
        slot = self._take_slot()
        ticket.client, ticket.number, ticket.slot = self, number, slot
        self.tickets[number] = ticket
        self._sent[self.number] = len(self.tickets)
        flags = messages.IS_ALONE if ticket.is_alone else 0
        if ticket.channel is not None:
            flags |= messages.IS_STREAM
        call = job.call
        self._link.send(
            (
                messages.SUBMIT,
                number,
                slot,
                flags,
                call.request_id,
                call.deadline,
                job.timeout_s,
                job.priority,
                job.tenant,
                dict(call.headers) if call.headers else None,
                payload,
                call.traceparent,
            )
        )

    def cancel(self, ticket: Ticket) -> None:
        """Take a request back; a hook that runs for it is told."""
        if self._forget(ticket.number) is not None:
            self._link.send((messages.CANCEL, ticket.number))

    def allow_more(self, ticket: Ticket) -> None:
        """Note that a chunk was read."""
        ticket.n_taken += 1
        if ticket.n_taken == _CREDIT_AT_ONCE:
            ticket.n_taken = 0
            self._link.send((messages.CREDIT, ticket.number, _CREDIT_AT_ONCE))

    def mark_of(self, ticket: Ticket) -> Mark:
        """Say where a request is there."""
        return Mark(self._marks[ticket.slot])

    def take_waiting(self) -> list[Ticket]:
        """Take back what no hook was begun for."""
        waiting = [t for t in self.tickets.values() if self.mark_of(t) is Mark.WAITING]
        for ticket in waiting:
            self.cancel(ticket)
        return waiting

    def take_all(self) -> list[tuple[Ticket, Mark]]:
        """Take back everything, with where it was; the replica has ended."""
        tickets = [(ticket, self.mark_of(ticket)) for ticket in self.tickets.values()]
        for ticket, _ in tickets:
            self._forget(ticket.number)
        return tickets

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        self._link.close()

    def _take_slot(self) -> int:
        """Give a slot that no request has had for long."""
        if self._n_slots < N_SLOTS:
            slot, self._n_slots = self._n_slots, self._n_slots + 1
        else:
            slot = self._free.popleft()
        self._marks[slot] = Mark.WAITING
        return slot

    def _forget(self, number: int) -> Ticket | None:
        ticket = self.tickets.pop(number, None)
        if ticket is not None:
            self._sent[self.number] = len(self.tickets)
            if self._n_slots == N_SLOTS and not self._free:  # requests may wait for one
                asyncio.get_running_loop().call_soon(self._sender.note_state, self)
            self._free.append(ticket.slot)
            ticket.client = None
        return ticket

    def _receive(self, received: list[tuple[Any, ...]]) -> None:
        for message in received:
            try:
                if message[0] == messages.RESULT:
                    self._take_result(*message[1:])
                else:
                    self._take(*message)
            except Exception:  # one message fails alone
                logger.exception("message.failed", extra={"model": self._model})

    def _take(self, kind: int, *facts: Any) -> None:
        if kind == messages.CHUNK:
            self._take_chunk(*facts)
        elif kind == messages.END:
            self._take_end(*facts)
        elif kind == messages.ERROR:
            self._take_error(*facts)
        elif kind == messages.NOT_BEGUN:
            if (ticket := self._forget(*facts)) is not None:
                self._sender.send_again(ticket)
        else:
            self.is_open = kind == messages.MENDED
            self._sender.note_state(self)

    def _take_result(self, number: int, *facts: Any) -> None:
        if (ticket := self._forget(number)) is None:
            return
        job = ticket.job
        packed = _note_times(job, facts)
        try:
            value = unpack(packed)
        except Exception as exc:
            logger.error("response.unpack.failed", exc_info=exc, extra={"model": self._model})
            job.fail(ModelError("The model's response cannot enter this process."))
        else:
            job.result(value)

    def _take_chunk(
        self, number: int, packed: Parcel, tokens: Mapping[str, int] | None = None
    ) -> None:
        ticket = self.tickets.get(number)
        if ticket is None or ticket.channel is None:
            return
        ticket.n_chunks += 1
        if tokens is not None:
            ticket.job.call.annotations.update(tokens)
        try:
            chunk = unpack(packed)
        except Exception as exc:
            logger.error("chunk.unpack.failed", exc_info=exc, extra={"model": self._model})
            self.cancel(ticket)
            ticket.job.fail(ModelError("A chunk of the model cannot enter this process."))
        else:
            ticket.channel.put(chunk)  # never waits: there is credit for it

    def _take_end(self, number: int, *facts: Any) -> None:
        if (ticket := self._forget(number)) is not None:
            _note_times(ticket.job, facts)
            ticket.job.result(None)

    def _take_error(self, number: int, *facts: Any) -> None:
        if (ticket := self._forget(number)) is None:
            return
        packed = _note_times(ticket.job, facts)
        try:
            error = unpack(packed)
        except Exception as exc:
            logger.error("error.unpack.failed", exc_info=exc, extra={"model": self._model})
            error = ModelError()
        ticket.job.fail(error)

    def _lost(self) -> None:
        self.is_open = False
        self._sender.note_lost(self)
        self._ended.set()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<ReplicaClient {self.number}: {state}, {len(self.tickets)} requests>"


def _note_times(job: Job, facts: tuple[Any, ...]) -> Any:
    """Note how long the stages took and what hooks have noted; give the answer."""
    durations, batch_size, annotations, packed = facts
    times = job.times
    times.queue_s, times.preprocess_s, times.infer_s, times.postprocess_s, *moments = durations
    if moments:
        times.queue_at, times.preprocess_at, times.infer_at, times.postprocess_at = moments
    times.batch_size = batch_size
    if annotations is not None:
        try:
            job.call.annotations.update(unpack(annotations))
        except Exception:
            logger.exception("annotations.unpack.failed")
    return packed
