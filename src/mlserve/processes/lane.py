"""
The way of requests to replicas in other processes. Lives on the HTTP process's event loop.

It has no queue: that is in the replicas, where the requests of all HTTP processes meet. Here each
request is kept until it is answered, and sent elsewhere if its replica ends.
"""

import asyncio
import math
import socket
from collections.abc import Callable, Collection
from typing import Any, Protocol

from mlserve.batching.admission import Admission
from mlserve.batching.shares import Shares, most_kept
from mlserve.errors import CapacityError, ModelFailedError
from mlserve.execution.worker import TaskSet
from mlserve.job import Job
from mlserve.processes.board import Board, Mark
from mlserve.processes.client import ReplicaClient, Ticket
from mlserve.processes.deaths import STAGES, error_after_death
from mlserve.processes.fleet import FleetStatus, Listener
from mlserve.spec import ModelSpec
from mlserve.statistics import Figures
from mlserve.streaming import Channel

__all__ = ["RemoteFleet", "RemoteLane"]


class RemoteFleet(Protocol):
    """The replicas of a model, be they supervised by this process or by another one."""

    board: Board

    async def start(self, load_timeout_s: float | None) -> int:
        """Start all replicas, wait until they can serve, and say how many examples there are."""

    def listen(self, index: int, listener: Listener) -> None:
        """Tell who listens of the replicas."""

    def note_lost(self, index: int, number: int, pid: int) -> None:
        """Ask for another way to a replica, if that process of it has not ended."""

    def watch_health(self, period_s: float) -> None:
        """Have each replica call its `health` hook every so often."""

    async def close(self) -> None:
        """Have every replica unload and end."""


class RemoteLane:
    """
    Leads jobs to the replicas of one fleet.

    Args:
        spec: The model.
        fleet: The replicas; the lane starts and closes them.
        index: The number of this HTTP process.
        on_change: Called when a replica is lost or comes back.
        on_progress: Takes how far the load of a replica has come: number, fraction, note.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self,
        spec: ModelSpec,
        fleet: RemoteFleet,
        index: int,
        on_change: Callable[[], None],
        on_progress: Callable[[int, float, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._spec = spec
        self._fleet = fleet
        self._board = fleet.board
        self._row = fleet.board.clients[index]
        self._index = index
        self._on_change = on_change
        self._on_progress = on_progress
        self._on_warming: Callable[[], None] | None = None
        self._clock = clock
        limits = spec.limits
        max_queue_size = None if limits.max_queue_size == "auto" else limits.max_queue_size
        self._admission = Admission(
            spec.name, max_queue_size, limits.timeout_s, spec.batching.max_size
        )
        self._learned_from: tuple[int, int] | None = None
        self._n_roomy = 0  # with fewer waiting, whoever comes is admitted
        self._has_priorities = limits.priorities
        self._clients: dict[int, ReplicaClient] = {}
        # The last process of each number, which may not be connected yet, or have ended.
        self._newest: dict[int, ReplicaClient] = {}
        self._tickets: dict[Job, Ticket] = {}
        self._shares = Shares()  # of them: what others have here says what they have elsewhere
        # Those that no replica takes yet, in the order in which they came: a set that has one.
        self._held: dict[Ticket, None] = {}
        self._status = FleetStatus()
        self._tasks = TaskSet()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def n_serving(self) -> int:
        """How many replicas take work."""
        return sum(client.is_open for client in self._clients.values())

    @property
    def is_recovering(self) -> bool:
        """Whether requests may wait although no replica serves."""
        # What becomes of a replica is seen here first, and by its supervisor a moment later.
        opened = {number for number, client in self._clients.items() if client.is_open}
        return self._status.is_recovering or not self._status.serving <= opened

    @property
    def reason(self) -> str | None:
        """Why the last replica was lost, for `/ready`; never an exception's text."""
        return self._status.reason

    @property
    def jobs(self) -> Collection[Job]:
        """What is in flight of this process."""
        return self._tickets.keys()

    @property
    def is_crowded(self) -> bool:
        """Whether a request may be refused: at least a batch waits."""
        return self._board.n_waiting() >= self._n_roomy

    async def start(self, on_warming: Callable[[], None], timeout_s: float | None) -> int:
        """
        Load and warm up all replicas at once.

        Args:
            on_warming: Called when a replica is loaded.
            timeout_s: How long that may take, in seconds; `None` = no bound.

        Returns:
            With how many examples each was warmed up.

        Raises:
            Exception: What the first failing replica raised.
            TimeoutError: If it took longer.
        """
        self._on_warming = on_warming
        self._fleet.listen(self._index, self)
        n_examples = await self._fleet.start(timeout_s)
        await self._tasks.wait()  # until all connections are made
        return n_examples

    def watch_health(self, period_s: float) -> None:
        """Have each replica call its `health` hook every so often."""
        self._fleet.watch_health(period_s)

    def refusal(
        self, *, budget_s: float, left_s: float, priority: int, tenant: str | None = None
    ) -> CapacityError | None:
        """
        Say why a request is refused, if all HTTP processes have no room or no time for it.

        Args:
            budget_s: The whole time of the request, in seconds.
            left_s: What is left of it, in seconds.
            priority: 0 is served first.
            tenant: Whose it is; `None` = nobody's, or not known yet.

        Returns:
            `QueueFullError` if no place is free, `OverloadedError` if its turn would come too late.
        """
        admission, board = self._admission, self._board
        self._learn()
        n_ahead = n_waiting = board.n_waiting()
        if self._spec.limits.priorities:
            n_ahead -= board.n_less_urgent(priority)
        if self._spec.contract.can_stream:
            n_ahead -= board.n_waiting_streams()
        n_total, shares = len(self._tickets), self._shares
        error = admission.error(
            n_waiting=n_waiting,
            n_ahead=shares.turns_ahead(tenant, n_ahead=max(0, n_ahead), n_total=n_total),
            budget_s=budget_s,
            left_s=left_s,
            n_kept=shares.kept_from(tenant, capacity=admission.capacity, n_total=n_total),
        )
        if error is not None:
            self._row.refused += 1
        return error

    def refusal_of(self, job: Job, *, is_stream: bool) -> CapacityError | None:
        """Say why a job is refused, as `refusal` does."""
        is_unbounded = is_stream or self._spec.contract.is_stepped
        left_s = math.inf if is_unbounded else job.call.remaining_s
        budget_s = math.inf if is_unbounded else job.timeout_s
        return self.refusal(
            budget_s=budget_s, left_s=left_s, priority=job.priority, tenant=job.tenant
        )

    def enter(self, job: Job, *, is_stream: bool) -> CapacityError | None:
        """Admit a job, or say why it is refused."""
        # With few waiting there is room for anybody, whatever has been learned.
        if self._board.n_waiting() >= self._n_roomy:
            error = self.refusal_of(job, is_stream=is_stream)
            if error is not None:
                return error
        if not self._tickets:
            self._idle.clear()
        self._tickets[job] = Ticket(job)
        self._shares.enter(job.tenant)
        row = self._row
        row.requests += 1
        row.in_flight = len(self._tickets)
        if self._has_priorities:
            row.by_priority[job.priority] += 1
        if is_stream:
            row.streams += 1
        return None

    def predict(self, job: Job) -> None:
        """Send a job that was admitted; its sink gets the answer."""
        self.send_again(self._tickets[job])

    def stream(self, job: Job, channel: Channel[Any]) -> None:
        """Send a job that was admitted; the channel gets its chunks."""
        ticket = self._tickets[job]
        ticket.channel = channel
        channel.on_taken = ticket.allow_more
        self.send_again(ticket)

    def forget(self, job: Job) -> None:
        """Take back a job that nobody waits for."""
        if (ticket := self._tickets.get(job)) is not None:
            self._take_back(ticket)

    def leave(self, job: Job) -> None:
        """Forget a job that has its answer, or whose caller has left."""
        if (ticket := self._tickets.pop(job, None)) is not None:
            self._take_back(ticket)
            self._shares.leave(job.tenant)
            self._row.in_flight = len(self._tickets)
            if self._has_priorities:
                self._row.by_priority[job.priority] -= 1
            if ticket.channel is not None:
                self._row.streams -= 1
                ticket.channel.on_taken = None  # which holds the ticket
        if not self._tickets:
            self._idle.set()

    def stage_of(self, job: Job) -> str:
        """Say where a job is."""
        ticket = self._tickets.get(job)
        if ticket is None or ticket.client is None:
            return "queue"
        return STAGES[ticket.client.mark_of(ticket)]

    async def wait_idle(self) -> None:
        """Wait until nobody waits for anything that is here."""
        await self._idle.wait()

    def note_change(self) -> None:
        """Look at the replicas: send what waits to those that serve, refuse what none will take."""
        # A replica that has just come up is given first what may only run alone.
        for ticket in sorted(self._held, key=lambda ticket: not ticket.is_alone):
            if self._may_wait and not self._takers():
                return
            del self._held[ticket]
            self.send_again(ticket)

    async def close(self) -> None:
        """Wait for what runs, and end every replica."""
        try:
            await self._fleet.close()
        finally:
            await self._tasks.close()
            for client in list(self._clients.values()):
                client.close()
            self._clients.clear()
            self._newest.clear()

    def figures(self) -> Figures:
        """Say what was done and is being done by this model's processes together."""
        board = self._board
        self._learn()
        return Figures(
            replicas=self.n_serving,
            in_flight=board.in_flight(),
            queued=self._board.n_waiting(),
            running=int(sum(row.running for row in board.replicas)),
            queue_capacity=self._admission.capacity,
            requests=int(sum(row.requests for row in board.clients)),
            refused=int(sum(row.refused for row in board.clients)),
            batches=int(sum(row.batches for row in board.replicas)),
            batched=int(sum(row.batched for row in board.replicas)),
            splits=int(sum(row.splits for row in board.replicas)),
            out_of_memory=int(sum(row.out_of_memory for row in board.replicas)),
        )

    def replica_up(self, number: int, sock: socket.socket) -> None:
        """Connect to a replica that can serve."""
        client = ReplicaClient(self, number, self._board, self._index, self._spec.name)
        previous, self._newest[number] = self._newest.get(number), client
        self._tasks.spawn(self._connect(client, sock, previous))

    def note_status(self, status: FleetStatus) -> None:
        """Learn how the replicas are."""
        self._status = status
        self._on_change()

    def note_progress(self, number: int, fraction: float, note: str) -> None:
        """Learn how far a load has come."""
        self._on_progress(number, fraction, note)

    def note_warming(self) -> None:
        """Learn that a replica was loaded."""
        if self._on_warming is not None:
            self._on_warming()

    def note_state(self, client: ReplicaClient) -> None:
        """Learn that a replica takes work, or does no longer."""
        if not client.is_open:
            for ticket in client.take_waiting():
                self.send_again(ticket)
        self._on_change()

    def note_lost(self, client: ReplicaClient) -> None:
        """Find another replica for what one had that has ended, or say what became of it."""
        if self._clients.get(client.number) is client:
            del self._clients[client.number]
        pid = self._status.pids.get(client.number)
        if pid is not None and self._newest.get(client.number) is client:
            self._fleet.note_lost(self._index, client.number, pid)
        for ticket, mark in client.take_all():
            error = error_after_death(ticket, mark, self._spec, was_hung=client.was_hung)
            if error is not None:
                ticket.job.fail(error)
                continue
            if mark is not Mark.WAITING:
                ticket.is_alone = mark.is_running
            self.send_again(ticket)
        self._on_change()

    def send_again(self, ticket: Ticket) -> None:
        """
        Send a request to the replica that has the least to do, once there is one.

        It is refused if there will be none.
        """
        if ticket.job.abandoned:
            return
        if (client := self._choose(ticket)) is not None:
            client.submit(ticket)
        elif self._may_wait:
            self._held[ticket] = None
        else:
            ticket.job.fail(ModelFailedError(self._spec.name, self.reason or "it broke down"))

    def _take_back(self, ticket: Ticket) -> None:
        if ticket.client is not None:
            ticket.client.cancel(ticket)
        elif self._held:
            self._held.pop(ticket, None)

    def _learn(self) -> None:
        """Look at what batches cost, which other processes may have found out."""
        state = self._board.n_observed(), self.n_serving
        if state != self._learned_from:
            self._learned_from = state
            self._admission.learn(self._board.learned_cost(), max(1, self.n_serving))
            capacity = self._admission.capacity
            self._n_roomy = min(self._spec.batching.max_size, capacity - most_kept(capacity))

    @property
    def _may_wait(self) -> bool:
        """Whether a replica will take what none takes now."""
        return self.n_serving > 0 or self.is_recovering

    def _takers(self) -> list[ReplicaClient]:
        return [client for client in self._clients.values() if client.takes_work]

    def _choose(self, ticket: Ticket) -> ReplicaClient | None:
        if len(self._clients) == 1 and not ticket.is_alone:  # as mostly
            (client,) = self._clients.values()
            return client if client.takes_work else None
        free = self._takers()
        if ticket.is_alone:
            # What has ended a replica should not end another one that has more to lose.
            fresh = [client for client in free if not client.tickets]
            left_s = ticket.job.call.remaining_s
            if fresh or (self.is_recovering and self._status.load_s < left_s / 2):
                free = fresh
        return min(free, key=lambda client: self._board.load(client.number), default=None)

    async def _connect(
        self, client: ReplicaClient, sock: socket.socket, previous: ReplicaClient | None
    ) -> None:
        await client.connect(sock, previous)
        self._clients[client.number] = client
        self._on_change()

    def __repr__(self) -> str:
        return f"<RemoteLane {len(self._tickets)} requests, {self.n_serving} replicas serve>"
