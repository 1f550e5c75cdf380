"""
Figures that the processes of one model share: who has how much to do, and what was running.

One block of memory that every process of the model maps. Each field has one writer; who reads it
may see a value that is a moment old, never half of one. What stands here outlives a process that
dies, which is the point of it: the others read what it was at work for.
"""

import mmap
import os
from ctypes import Array, Structure, c_double, sizeof
from enum import IntEnum
from typing import ClassVar, Self

from mlserve.batching.cost_model import CostModel
from mlserve.processes.memory import shared_memory

__all__ = ["N_SLOTS", "Board", "Cause", "ClientRow", "Mark", "ReplicaRow", "SharedCost"]

N_SLOTS = 16_384
"""How many requests of one HTTP process one replica can have at once: each has its mark."""

_N_PRIORITIES = 10


class Mark(IntEnum):
    """Where a request is in its replica; from `PREPROCESS` to `STREAM` a hook may be at work."""

    WAITING = 0
    PREPROCESS = 1
    INFER = 2
    POSTPROCESS = 3
    STREAM = 4
    ANSWERED = 5
    """Its answer was handed to the socket, which may not have taken it."""

    @property
    def is_running(self) -> bool:
        """Whether a hook may be at work for it."""
        return Mark.WAITING < self < Mark.ANSWERED


class Cause(IntEnum):
    """Why the supervisor ended a replica."""

    NONE = 0
    HANG = 1
    """A hook did not return in time."""


class ReplicaRow(Structure):
    """What a replica's process says of itself; written there, but for `cause`."""

    _fields_: ClassVar = [
        ("beat", c_double),  # counts while its event loop turns
        ("kill_at", c_double),  # when a hook is overdue, in monotonic seconds; 0 = none runs
        ("held", c_double),  # how many requests it has and has not answered
        ("cost", c_double),  # what they cost together
        ("running", c_double),  # how many requests a hook is at work for
        ("active", c_double),  # how many of those that it has wait no longer
        ("batches", c_double),
        ("batched", c_double),
        ("splits", c_double),
        ("out_of_memory", c_double),
        # What a batch costs, learned: a constant, so much for each request, from how many batches.
        ("fixed_s", c_double),
        ("each_s", c_double),
        ("observed", c_double),
        ("cause", c_double),  # why the supervisor ended it; written by that before it does
        ("streams", c_double),  # how many streams run
        ("answered", c_double),  # how many requests it has answered, whatever the answer
    ]

    def clear(self) -> None:
        """Forget the moment of a process that has ended; its counts stay."""
        for field in ("beat", "kill_at", "held", "cost", "running", "active", "streams"):
            setattr(self, field, 0.0)

    def publish_cost(self, model: CostModel) -> None:
        """Tell the others what batches were found to cost."""
        self.fixed_s, self.each_s = model.line
        self.observed = model.n_observed


class ClientRow(Structure):
    """What an HTTP process says of itself; written there."""

    _fields_: ClassVar = [
        ("requests", c_double),  # how many it has accepted
        ("refused", c_double),  # how many found no room
        ("streams", c_double),  # how many of those that it has not answered are streams
        ("in_flight", c_double),  # how many requests it has not answered
    ]

    by_priority: "Array[c_double]"
    """How many requests it has not answered, of each priority."""
    sent: "Array[c_double]"
    """How many of them it has sent to each replica."""

    def clear(self) -> None:
        """Forget the moment of a process that died; its counts stay."""
        self.streams = self.in_flight = 0.0
        for cells in (self.by_priority, self.sent):
            for index in range(len(cells)):
                cells[index] = 0.0


class SharedCost:
    """What a batch costs, as the replicas have learned it."""

    def __init__(self, row: ReplicaRow) -> None:
        self.n_observed = int(row.observed)
        self._fixed_s, self._each_s = row.fixed_s, row.each_s

    @property
    def is_known(self) -> bool:
        """Whether enough batches were seen to say anything."""
        return self.n_observed >= 5

    def predict(self, n: int) -> float:
        """Say how long a batch of `n` should take, in seconds; 0 when nothing is known."""
        return self._fixed_s + self._each_s * n


class Board:
    """
    The shared memory of one model's processes.

    Args:
        fd: An open file that `create` has made; the board keeps it.
        n_replicas: How many replicas there may be.
        n_clients: How many HTTP processes there are.
    """

    def __init__(self, fd: int, n_replicas: int, n_clients: int) -> None:
        self.fd = fd
        """The memory, to be passed to further processes; -1 once it is closed."""
        self.n_replicas = n_replicas
        self.n_clients = n_clients
        self._is_small = n_replicas == n_clients == 1
        self._memory = mmap.mmap(fd, _size(n_replicas, n_clients))
        self._bytes = memoryview(self._memory)
        # Fields are read and written in C, each in one piece.
        self.replicas = [
            ReplicaRow.from_buffer(self._memory, number * sizeof(ReplicaRow))
            for number in range(n_replicas)
        ]
        """What each replica says of itself."""
        at = n_replicas * sizeof(ReplicaRow)
        self.clients = []
        """What each HTTP process says of itself."""
        for _ in range(n_clients):
            row = ClientRow.from_buffer(self._memory, at)
            at += sizeof(ClientRow)
            row.by_priority = (c_double * _N_PRIORITIES).from_buffer(self._memory, at)
            at += sizeof(row.by_priority)
            row.sent = (c_double * n_replicas).from_buffer(self._memory, at)
            at += sizeof(row.sent)
            self.clients.append(row)
        self._marks_at = at

    @classmethod
    def create(cls, n_replicas: int, n_clients: int) -> Self:
        """Make a board; its memory is gone with its last process."""
        fd = shared_memory("mlserve-board", _size(n_replicas, n_clients))
        return cls(fd, n_replicas, n_clients)

    def marks(self, client: int, replica: int) -> memoryview:
        """Give the marks of an HTTP process's requests in a replica: a `Mark` by slot."""
        start = self._marks_at + (client * self.n_replicas + replica) * N_SLOTS
        return self._bytes[start : start + N_SLOTS]

    def clear_client(self, client: int) -> None:
        """Forget the moment of an HTTP process that has ended; its counts stay."""
        self.clients[client].clear()
        for replica in range(self.n_replicas):
            self.marks(client, replica)[:] = bytes(N_SLOTS)

    def n_running(self, replica: int) -> int:
        """Count the requests that a replica is, or was, running a hook for."""
        n = 0
        for client in range(self.n_clients):
            marks = self.marks(client, replica).tobytes()
            n += sum(marks.count(mark) for mark in Mark if mark.is_running)
        return n

    def load(self, replica: int) -> float:
        """Say how much a replica has to do, in cost: what it has and what is on its way to it."""
        row = self.replicas[replica]
        held = row.held
        on_the_way = sum(client.sent[replica] for client in self.clients) - held
        each = row.cost / held if held else 1.0
        return float(row.cost + max(0.0, on_the_way) * each)

    def in_flight(self) -> int:
        """Count the unanswered requests of all HTTP processes."""
        n = 0.0
        for row in self.clients:
            n += row.in_flight
        return int(n)

    def n_waiting(self) -> int:
        """Count the requests that no hook was begun for, or that are between two of them."""
        if self._is_small:  # one of each, as mostly
            n = self.clients[0].in_flight - self.replicas[0].active
        else:
            n = sum(client.in_flight for client in self.clients)
            n -= sum(replica.active for replica in self.replicas)
        return int(n) if n > 0 else 0

    def n_less_urgent(self, priority: int) -> int:
        """
        Count the waiting requests that any one of a priority goes before, at the least.

        Which of the unanswered ones run is not known: as many as may be of these.
        """
        n_unanswered = sum(sum(row.by_priority[priority + 1 :]) for row in self.clients)
        return max(0, int(n_unanswered - sum(row.active for row in self.replicas)))

    def n_waiting_streams(self) -> int:
        """Count the streams among them."""
        streams = sum(row.streams for row in self.clients)
        return max(0, int(streams - sum(row.streams for row in self.replicas)))

    def n_observed(self) -> int:
        """Say from how many batches the replica has learned that has run the most."""
        return int(max(row.observed for row in self.replicas))

    def learned_cost(self) -> SharedCost:
        """Give what that replica has learned of their cost."""
        return SharedCost(max(self.replicas, key=lambda row: row.observed))

    def close(self) -> None:
        """Let go of the memory's descriptor; views of the memory stay usable."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Board of {self.n_replicas} replicas and {self.n_clients} HTTP processes>"


def _size(n_replicas: int, n_clients: int) -> int:
    client = sizeof(ClientRow) + sizeof(c_double) * (_N_PRIORITIES + n_replicas)
    return n_replicas * sizeof(ReplicaRow) + n_clients * (client + n_replicas * N_SLOTS)
