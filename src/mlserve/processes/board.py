"""
Figures that the processes of one model share: who has how much to do, and what was running.

One block of memory that every process of the model maps. Each field has one writer; who reads it
may see a value that is a moment old, never half of one. What stands here outlives a process that
dies, which is the point of it: the others read what it was at work for.
"""

import mmap
import os
from enum import IntEnum
from typing import Self

from mlserve.batching.cost_model import CostModel
from mlserve.processes.memory import shared_memory

__all__ = ["N_SLOTS", "Board", "Cause", "ClientRow", "Mark", "ReplicaRow", "SharedCost"]

N_SLOTS = 16_384
"""How many requests of one HTTP process one replica can have at once: each has its mark."""

_N_PRIORITIES = 10
_DOUBLE = 8
_N_REPLICA_FIELDS = 16
_N_CLIENT_FIELDS = 16


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


class _Field:
    """One number of a row."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, row: "_Row", owner: type) -> float:
        return row.cells[self._index]

    def __set__(self, row: "_Row", value: float) -> None:
        row.cells[self._index] = value


class _Row:
    def __init__(self, cells: "memoryview[float]") -> None:
        self.cells = cells


class ReplicaRow(_Row):
    """What a replica's process says of itself; written there, but for `cause`."""

    beat = _Field(0)
    """Counts while its event loop turns."""
    kill_at = _Field(1)
    """When a hook that runs now is overdue, in monotonic seconds; 0 = none runs."""
    held = _Field(2)
    """How many requests it has and has not answered."""
    cost = _Field(3)
    """What they cost together."""
    running = _Field(4)
    """How many requests a hook is at work for."""
    active = _Field(5)
    """How many of those that it has wait no longer."""
    batches = _Field(6)
    batched = _Field(7)
    splits = _Field(8)
    out_of_memory = _Field(9)
    fixed_s = _Field(10)
    """What a batch costs, learned: a constant, and so much for each request."""
    each_s = _Field(11)
    observed = _Field(12)
    """From how many batches that was learned."""
    cause = _Field(13)
    """Why the supervisor ended it; written by the supervisor before it does."""
    streams = _Field(14)
    """How many streams run."""
    answered = _Field(15)
    """How many requests it has answered, whatever the answer."""

    def clear(self) -> None:
        """Forget the moment of a process that has ended; its counts stay."""
        for field in ("beat", "kill_at", "held", "cost", "running", "active", "streams"):
            setattr(self, field, 0.0)

    def publish_cost(self, model: CostModel) -> None:
        """Tell the others what batches were found to cost."""
        self.fixed_s, self.each_s = model.line
        self.observed = model.n_observed


class ClientRow(_Row):
    """What an HTTP process says of itself; written there."""

    requests = _Field(0)
    """How many requests it has accepted."""
    refused = _Field(1)
    """How many found no room."""
    streams = _Field(12)
    """How many of those that it has not answered are streams."""
    in_flight = _Field(13)
    """How many requests it has not answered."""

    def __init__(self, cells: "memoryview[float]", n_replicas: int) -> None:
        super().__init__(cells)
        start = _N_CLIENT_FIELDS
        self.by_priority = cells[2 : 2 + _N_PRIORITIES]
        """How many requests it has not answered, of each priority."""
        self.sent = cells[start : start + n_replicas]
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
        self._memory = mmap.mmap(fd, _size(n_replicas, n_clients))
        self._bytes = memoryview(self._memory)
        width = _client_width(n_replicas)
        n_cells = n_replicas * _N_REPLICA_FIELDS + n_clients * width
        cells = self._bytes[: n_cells * _DOUBLE].cast("d")
        self.replicas = [
            ReplicaRow(cells[start : start + _N_REPLICA_FIELDS])
            for start in range(0, n_replicas * _N_REPLICA_FIELDS, _N_REPLICA_FIELDS)
        ]
        """What each replica says of itself."""
        first = n_replicas * _N_REPLICA_FIELDS
        self.clients = [
            ClientRow(cells[start : start + width], n_replicas)
            for start in range(first, n_cells, width)
        ]
        """What each HTTP process says of itself."""
        self._marks_at = n_cells * _DOUBLE

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
        return row.cost + max(0.0, on_the_way) * each

    def in_flight(self) -> int:
        """Count the unanswered requests of all HTTP processes."""
        n = 0.0
        for row in self.clients:
            n += row.in_flight
        return int(n)

    def n_waiting(self) -> int:
        """Count the requests that no hook was begun for, or that are between two of them."""
        n = self.in_flight()
        for row in self.replicas:
            n -= int(row.active)
        return max(n, 0)

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


def _client_width(n_replicas: int) -> int:
    return _N_CLIENT_FIELDS + n_replicas


def _size(n_replicas: int, n_clients: int) -> int:
    cells = n_replicas * _N_REPLICA_FIELDS + n_clients * _client_width(n_replicas)
    return cells * _DOUBLE + n_clients * n_replicas * N_SLOTS
