"""
The waiting requests of one model. Pure: no clock, no thread, no asyncio.

Places are reserved before a request is preprocessed and filled afterwards, so that work is
refused before anything is spent on it. Requests are served by priority; within one, tenants take
turns, and each has its oldest served first. Only equal keys share a batch.

Source of the turns:
    Start-time fair queueing: Goyal, Vin & Cheng 1996, "Start-time Fair Queuing", SIGCOMM. As in
    Sheng et al. 2024, arXiv:2401.00588, a tenant is charged for what is served, not for what it
    sends, so that what expires or is abandoned costs it nothing.
"""

import heapq
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["BatchLimits", "Plan", "Queued", "RequestQueue"]


class Queued(Protocol):
    """What the queue reads of a request."""

    @property
    def priority(self) -> int:
        """0 is served first."""

    @property
    def tenant(self) -> str | None:
        """Whose it is, where tenants take turns."""

    @property
    def key(self) -> Hashable:
        """With what it may share a batch."""

    @property
    def cost(self) -> int:
        """What it adds to a batch."""

    @property
    def deadline(self) -> float:
        """When it expires, in monotonic seconds."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""

    @property
    def enqueued_at(self) -> float:
        """When it was put here, in monotonic seconds."""


ItemT = TypeVar("ItemT", bound=Queued)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What a batch may hold."""

    max_size: int
    """The most requests."""
    max_cost: int | None = None
    """The most cost; a request that exceeds it alone still runs, alone."""
    padded: bool = False
    """Whether the cost is longest × count instead of the sum."""


@dataclass(frozen=True, slots=True)
class Plan(Generic[ItemT]):
    """The batch that would be taken now."""

    batch: list[ItemT]
    """The requests, in the order in which `infer` gets them."""
    is_full: bool
    """Whether no further request of the same key could join."""
    dead: list[ItemT]
    """Expired or abandoned requests that were met on the way; they must never run."""

    @property
    def oldest_at(self) -> float:
        """When the oldest request of the batch entered the queue, in monotonic seconds."""
        return min(item.enqueued_at for item in self.batch)


class _Share(Generic[ItemT]):
    """What one tenant has waiting in one priority."""

    __slots__ = ("lanes", "used")

    def __init__(self, used: int) -> None:
        # key → sequence number → item; empty lanes are deleted, dicts keep order.
        self.lanes: dict[Hashable, dict[int, ItemT]] = {}
        self.used = used
        """The cost that was served to it, on the level's scale."""

    @property
    def oldest(self) -> int:
        """The sequence number of its oldest item."""
        return min(next(iter(lane)) for lane in self.lanes.values())


class _Level(Generic[ItemT]):
    """The tenants of one priority, and whose turn it is."""

    __slots__ = ("shares", "turn")

    def __init__(self) -> None:
        # Also of tenants that have nothing waiting, if they were served more than `turn` or are
        # the only ones.
        self.shares: dict[str | None, _Share[ItemT]] = {}
        self.turn = 0
        """What had been served, before it, to the tenant that the last batch began with."""

    def charge(self, items: list[ItemT]) -> None:
        """Note that items of this priority are served, in this order."""
        if items:
            self.turn = max(self.turn, self.shares[items[0].tenant].used)
        for item in items:
            self.shares[item.tenant].used += _charge(item)
        for tenant, share in list(self.shares.items()):
            if not share.lanes and share.used <= self.turn:
                del self.shares[tenant]

    def rest(self, tenant: str | None) -> None:
        """Forget who was served what once nothing waits; `tenant` was the last one."""
        if not any(share.lanes for share in self.shares.values()):
            share = self.shares[tenant]
            self.shares = {tenant: share}
            self.turn = share.used = 0

    def in_order(self) -> Iterator[ItemT]:
        """Give all of whose turn it is, oldest first, then of who comes next."""
        shares: Iterable[_Share[ItemT]] = self.shares.values()
        if len(self.shares) > 1:
            waiting = [share for share in shares if share.lanes]
            shares = sorted(waiting, key=lambda share: (share.used, share.oldest))
        for share in shares:
            if len(share.lanes) == 1:
                yield from next(iter(share.lanes.values())).values()
            else:
                yield from _by_age(share.lanes.values())

    def of_key(self, key: Hashable, now: float) -> Iterable[ItemT]:
        """Give what has one key, the dead as well, as tenants would take turns on it."""
        if len(self.shares) == 1:
            (share,) = self.shares.values()
            return share.lanes.get(key, {}).values()
        lanes = [
            (share.used, share.lanes[key]) for share in self.shares.values() if key in share.lanes
        ]
        return _in_turns(lanes, now)


class RequestQueue(Generic[ItemT]):
    """
    A bounded queue with priorities, tenants and keys; adding and removing cost no search.

    Args:
        capacity: How many requests may wait, those being preprocessed included. May be changed
            at any time; a smaller value refuses new requests and drops none.

    Example:
        >>> queue = RequestQueue(capacity=2)
        >>> queue.reserve(), queue.reserve(), queue.reserve()
        (True, True, False)
        >>> queue
        <RequestQueue 0 waiting, 2 reserved of 2>
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._reserved = 0
        self._n_items = 0
        self._levels: dict[int, _Level[ItemT]] = {}  # by priority
        self._places: dict[int, int] = {}  # id(item) → sequence number
        self._sequence = 0

    def __len__(self) -> int:
        return self._n_items

    @property
    def occupied(self) -> int:
        """How many places are filled or reserved."""
        return self._n_items + self._reserved

    def ahead_of(self, priority: int) -> int:
        """Say how many would be served before a new item; reserved places count as such."""
        if all(level <= priority for level in self._levels):
            return self.occupied
        levels = (level for number, level in self._levels.items() if number <= priority)
        shares = (share for level in levels for share in level.shares.values())
        return self._reserved + sum(len(lane) for share in shares for lane in share.lanes.values())

    def reserve(self) -> bool:
        """Take a place; `False` if there is none."""
        if self.occupied >= self.capacity:
            return False
        self._reserved += 1
        return True

    def release(self) -> None:
        """Give a reserved place back unused."""
        if self._reserved < 1:
            raise ValueError("No place is reserved.")
        self._reserved -= 1

    def put(self, item: ItemT) -> None:
        """
        Fill a reserved place.

        Raises:
            ValueError: If no place is reserved, or the item is already in the queue.
        """
        if id(item) in self._places:
            raise ValueError("The item is already in the queue.")
        self.release()
        self._sequence += 1
        level = self._levels.get(item.priority)
        if level is None:
            level = self._levels[item.priority] = _Level[ItemT]()
        share = level.shares.get(item.tenant)
        if share is None:
            # While it had nothing waiting it has saved no turns.
            share = level.shares[item.tenant] = _Share[ItemT](level.turn)
        share.lanes.setdefault(item.key, {})[self._sequence] = item
        self._places[id(item)] = self._sequence
        self._n_items += 1

    def discard(self, item: ItemT) -> bool:
        """Remove an item and free its place; `False` if it is not here any more."""
        sequence = self._places.pop(id(item), None)
        if sequence is None:
            return False
        level = self._levels[item.priority]
        lanes = level.shares[item.tenant].lanes
        lane = lanes[item.key]
        del lane[sequence]
        if not lane:
            del lanes[item.key]
            if not lanes and len(level.shares) > 1:
                level.rest(item.tenant)
        self._n_items -= 1
        return True

    def plan(self, limits: BatchLimits, now: float) -> Plan[ItemT]:
        """
        Say which batch `take` would give: whose turn it is in the first priority, then its like.

        Args:
            limits: What a batch may hold.
            now: Monotonic seconds; what expired by then is not planned.
        """
        dead: list[ItemT] = []
        anchor = self._head(now, dead)
        if anchor is None:
            return Plan([], is_full=False, dead=dead)
        alive = self._alive(anchor.key, now, dead)
        batch, is_full = (
            _fill_padded(anchor, alive, limits) if limits.padded else _fill(alive, limits)
        )
        return Plan(batch, is_full, dead)

    def take(self, limits: BatchLimits, now: float) -> Plan[ItemT]:
        """Remove and return the planned batch, and the dead that were met."""
        plan = self.plan(limits, now)
        for priority, level in self._levels.items():
            if len(level.shares) > 1:
                level.charge([item for item in plan.batch if item.priority == priority])
        for item in (*plan.batch, *plan.dead):
            self.discard(item)
        return plan

    def clear(self) -> list[ItemT]:
        """Remove and return everything, oldest of the first priority first."""
        levels = [self._levels[priority] for priority in sorted(self._levels)]
        lanes = [
            [lane for s in level.shares.values() for lane in s.lanes.values()] for level in levels
        ]
        items = [item for level in lanes for item in _by_age(level)]
        for item in items:
            self.discard(item)
        return items

    def _head(self, now: float, dead: list[ItemT]) -> ItemT | None:
        """Find the item to build the batch around, noting the dead before it."""
        for priority in sorted(self._levels):
            for item in self._levels[priority].in_order():
                if not _is_dead(item, now):
                    return item
                dead.append(item)
        return None

    def _alive(self, key: Hashable, now: float, dead: list[ItemT]) -> Iterator[ItemT]:
        known_dead = {id(item) for item in dead}
        for priority in sorted(self._levels):
            for item in self._levels[priority].of_key(key, now):
                if not _is_dead(item, now):
                    yield item
                elif id(item) not in known_dead:
                    dead.append(item)

    def __repr__(self) -> str:
        waiting, reserved = self._n_items, self._reserved
        return f"<RequestQueue {waiting} waiting, {reserved} reserved of {self.capacity}>"


def _by_age(lanes: Iterable[dict[int, ItemT]]) -> Iterator[ItemT]:
    for _, item in heapq.merge(*(lane.items() for lane in lanes), key=_sequence):
        yield item


def _in_turns(lanes: list[tuple[int, dict[int, ItemT]]], now: float) -> Iterator[ItemT]:
    """Give items of several tenants, each of which begins with what it was served before."""
    heap = []
    for used, lane in lanes:
        entries = iter(lane.items())
        heap.append((used, *next(entries), entries))  # numbers differ: items are never compared
    heapq.heapify(heap)
    while heap:
        used, _, item, entries = heap[0]
        yield item
        used += 0 if _is_dead(item, now) else _charge(item)
        if (entry := next(entries, None)) is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (used, *entry, entries))


def _charge(item: Queued) -> int:
    """Say what an item costs its tenant; nothing is free, or one could take every turn."""
    return max(1, item.cost)


def _sequence(entry: tuple[int, Any]) -> int:
    return entry[0]


def _is_dead(item: Queued, now: float) -> bool:
    return item.abandoned or item.deadline <= now


def _fill(alive: Iterator[ItemT], limits: BatchLimits) -> tuple[list[ItemT], bool]:
    """Take from the front while size and summed cost allow; what comes later never overtakes."""
    batch: list[ItemT] = []
    total = 0
    for item in alive:
        total += item.cost
        too_dear = limits.max_cost is not None and total > limits.max_cost
        if batch and (too_dear or len(batch) >= limits.max_size):
            return batch, True
        batch.append(item)
    exhausted = limits.max_cost is not None and total >= limits.max_cost
    return batch, exhausted or len(batch) >= limits.max_size


def _fill_padded(
    anchor: ItemT, alive: Iterator[ItemT], limits: BatchLimits
) -> tuple[list[ItemT], bool]:
    """Take whose turn it is, then those nearest to it in cost while longest × count allows."""
    budget = limits.max_cost
    others = sorted(
        (item for item in alive if item is not anchor),
        key=lambda item: (item.priority, abs(item.cost - anchor.cost)),
    )
    batch, longest = [anchor], anchor.cost
    for item in others:
        if len(batch) >= limits.max_size:
            break
        padded_to = max(longest, item.cost)
        if budget is None or padded_to * (len(batch) + 1) <= budget:
            batch.append(item)
            longest = padded_to
    exhausted = budget is not None and longest * (len(batch) + 1) > budget
    return batch, exhausted or len(batch) >= limits.max_size
