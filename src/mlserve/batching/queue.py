"""
The waiting requests of one model. Pure: no clock, no thread, no asyncio.

Places are reserved before a request is preprocessed and filled afterwards, so that work is
refused before anything is spent on it. Requests are served by priority, then by age; only equal
keys share a batch.
"""

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["BatchLimits", "Plan", "Queued", "RequestQueue"]


class Queued(Protocol):
    """What the queue reads of a request."""

    @property
    def priority(self) -> int:
        """0 is served first."""

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


class RequestQueue(Generic[ItemT]):
    """
    A bounded queue with priorities and keys; adding and removing cost no search.

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
        # priority → key → sequence number → item; empty levels are deleted, dicts keep order.
        self._lanes: dict[int, dict[Hashable, dict[int, ItemT]]] = {}
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
        if all(level <= priority for level in self._lanes):
            return self.occupied
        lanes = (self._lanes[level] for level in self._lanes if level <= priority)
        return self._reserved + sum(len(lane) for keys in lanes for lane in keys.values())

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
        lane = self._lanes.setdefault(item.priority, {}).setdefault(item.key, {})
        lane[self._sequence] = item
        self._places[id(item)] = self._sequence
        self._n_items += 1

    def discard(self, item: ItemT) -> bool:
        """Remove an item and free its place; `False` if it is not here any more."""
        sequence = self._places.pop(id(item), None)
        if sequence is None:
            return False
        lanes = self._lanes[item.priority]
        lane = lanes[item.key]
        del lane[sequence]
        if not lane:
            del lanes[item.key]
            if not lanes:
                del self._lanes[item.priority]
        self._n_items -= 1
        return True

    def plan(self, limits: BatchLimits, now: float) -> Plan[ItemT]:
        """
        Say which batch `take` would give: the oldest of the first priority, then its like.

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
        for item in (*plan.batch, *plan.dead):
            self.discard(item)
        return plan

    def clear(self) -> list[ItemT]:
        """Remove and return everything, oldest of the first priority first."""
        items = [item for _, item in self._in_order()]
        for item in items:
            self.discard(item)
        return items

    def _head(self, now: float, dead: list[ItemT]) -> ItemT | None:
        """Find the item to build the batch around, noting the dead before it."""
        for _, item in self._in_order():
            if not _is_dead(item, now):
                return item
            dead.append(item)
        return None

    def _alive(self, key: Hashable, now: float, dead: list[ItemT]) -> Iterator[ItemT]:
        known_dead = {id(item) for item in dead}
        for priority in sorted(self._lanes):
            for item in self._lanes[priority].get(key, {}).values():
                if not _is_dead(item, now):
                    yield item
                elif id(item) not in known_dead:
                    dead.append(item)

    def _in_order(self) -> Iterator[tuple[int, ItemT]]:
        for priority in sorted(self._lanes):
            lanes = self._lanes[priority]
            if len(lanes) == 1:
                yield from next(iter(lanes.values())).items()
            else:
                yield from heapq.merge(*(lane.items() for lane in lanes.values()), key=_sequence)

    def __repr__(self) -> str:
        waiting, reserved = self._n_items, self._reserved
        return f"<RequestQueue {waiting} waiting, {reserved} reserved of {self.capacity}>"


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
    """Take the oldest and then those nearest to it in cost while longest × count allows."""
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
