"""
The waiting requests of one model. Pure: no clock, no thread, no asyncio.

Places are reserved before a request is preprocessed and filled afterwards, so that work is
refused before anything is spent on it. Requests are served by priority; within one, tenants take
turns, and each has its oldest served first. Only equal keys share a batch.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, NamedTuple

from mlserve.batching.turns import ItemT, Level, Queued, Share, by_age, is_dead

__all__ = ["BatchLimits", "Plan", "Queued", "RequestQueue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What a batch may hold."""

    max_size: int
    """The most requests."""
    max_cost: int | None = None
    """The most cost; a request that exceeds it alone still runs, alone."""
    padded: bool = False
    """Whether the cost is longest × count instead of the sum."""


class Plan(NamedTuple, Generic[ItemT]):
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
        self._levels: dict[int, Level[ItemT]] = {}  # by priority
        self._last_priority = 0
        self._places: dict[int, int] = {}  # id(item) → sequence number
        self._sequence = 0
        # Where the newest item was put. Nearly always all others are there as well: there is one
        # priority, one tenant and one key, and then nothing has to be searched.
        self._lane: dict[int, ItemT] = {}
        self._lanes: dict[Hashable, dict[int, ItemT]] = {}  # of which it is one
        self._is_plain = True  # there is one priority and one tenant at most, as far as is known

    @property
    def is_plain(self) -> bool:
        """Whether whoever comes last is served last: priority, tenant and key are those of all."""
        return self._is_plain and len(self._lane) == len(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def occupied(self) -> int:
        """How many places are filled or reserved."""
        return len(self._places) + self._reserved

    def ahead_of(self, priority: int) -> int:
        """Say how many would be served before a new item; reserved places count as such."""
        if priority >= self._last_priority:
            return len(self._places) + self._reserved
        levels = (level for number, level in self._levels.items() if number <= priority)
        shares = (share for level in levels for share in level.shares.values())
        return self._reserved + sum(len(lane) for share in shares for lane in share.lanes.values())

    def reserve(self) -> bool:
        """Take a place; `False` if there is none."""
        if len(self._places) + self._reserved >= self.capacity:
            return False
        self._reserved += 1
        return True

    def release(self) -> None:
        """Give a reserved place back unused."""
        if self._reserved < 1:
            raise ValueError("No place is reserved.")
        self._reserved -= 1

    def put(self, item: ItemT, *, is_reserved: bool = True) -> None:
        """
        Fill a place.

        Args:
            item: What comes into it.
            is_reserved: Whether it is a reserved one; else one more is taken, whatever the
                capacity.

        Raises:
            ValueError: If no place is reserved, or the item is already in the queue.
        """
        place = id(item)
        if place in self._places:
            raise ValueError("The item is already in the queue.")
        if is_reserved:
            self.release()
        try:
            lanes = self._levels[item.priority].shares[item.tenant].lanes
        except KeyError:
            lanes = self._new_share(item).lanes
        lane = lanes.get(item.key)
        if lane is None:
            lane = lanes[item.key] = {}
        self._lane, self._lanes = lane, lanes
        self._sequence = sequence = self._sequence + 1
        self._places[place] = sequence
        lane[sequence] = item

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
        return True

    def plan(self, limits: BatchLimits, now: float) -> Plan[ItemT]:
        """
        Say which batch `take` would give: whose turn it is in the first priority, then its like.

        Args:
            limits: What a batch may hold.
            now: Monotonic seconds; what expired by then is not planned.
        """
        lane = self._lane
        if limits.padded or len(lane) != len(self._places):
            return self._plan_in_turns(limits, now)
        # All is in one lane: the batch is what stands in front, if nobody there is dead.
        max_size = limits.max_size
        batch = list(islice(lane.values(), max_size + 1))
        for item in batch:
            if item.abandoned or item.deadline <= now:
                return self._plan_in_turns(limits, now)
        if limits.max_cost is not None:
            return Plan(*_fill(batch, limits), [])
        is_full = len(batch) >= max_size
        del batch[max_size:]
        return Plan(batch, is_full, [])

    def take(self, limits: BatchLimits, now: float) -> Plan[ItemT]:
        """Remove and return the planned batch, and the dead that were met."""
        plan = self.plan(limits, now)
        self.remove(plan)
        return plan

    def remove(self, plan: Plan[ItemT]) -> None:
        """Remove what was planned: of that, and of what was to come before it, nothing has gone."""
        batch, _, dead = plan
        places, lane = self._places, self._lane
        if dead or not self._is_plain or len(lane) != len(places):
            self._remove_in_turns(plan)
        elif len(batch) < len(places):
            for item in batch:
                del lane[places.pop(id(item))]
        else:
            places.clear()
            lane.clear()
            self._lanes.clear()

    def clear(self) -> list[ItemT]:
        """Remove and return everything, oldest of the first priority first."""
        levels = [self._levels[priority] for priority in sorted(self._levels)]
        lanes = [
            [lane for s in level.shares.values() for lane in s.lanes.values()] for level in levels
        ]
        items = [item for level in lanes for item in by_age(level)]
        for item in items:
            self.discard(item)
        return items

    def _new_share(self, item: ItemT) -> Share[ItemT]:
        level = self._levels.get(item.priority)
        if level is None:
            self._forget_empty_levels()
            level = self._levels[item.priority] = Level[ItemT]()
            self._last_priority = max(self._levels)
        # While it had nothing waiting it has saved no turns.
        share = level.shares[item.tenant] = Share[ItemT](level.turn)
        self._is_plain = len(self._levels) == 1 == len(level.shares)
        return share

    def _remove_in_turns(self, plan: Plan[ItemT]) -> None:
        """Charge the tenants that are served, where there are several, and remove one by one."""
        for priority, level in self._levels.items():
            if len(level.shares) > 1:
                level.charge([item for item in plan.batch if item.priority == priority])
        for item in (*plan.batch, *plan.dead):
            self.discard(item)
        if len(self._levels) > 1:
            self._forget_empty_levels()
        self._is_plain = [len(level.shares) for level in self._levels.values()] in ([], [1])

    def _forget_empty_levels(self) -> None:
        for priority in [p for p, level in self._levels.items() if level.is_empty]:
            del self._levels[priority]
        self._last_priority = max(self._levels, default=0)

    def _plan_in_turns(self, limits: BatchLimits, now: float) -> Plan[ItemT]:
        dead: list[ItemT] = []
        anchor = self._head(now, dead)
        if anchor is None:
            return Plan([], is_full=False, dead=dead)
        alive = self._alive(anchor.key, now, dead)
        batch, is_full = (
            _fill_padded(anchor, alive, limits) if limits.padded else _fill(alive, limits)
        )
        return Plan(batch, is_full, dead)

    def _head(self, now: float, dead: list[ItemT]) -> ItemT | None:
        """Find the item to build the batch around, noting the dead before it."""
        for priority in sorted(self._levels):
            for item in self._levels[priority].in_order():
                if not is_dead(item, now):
                    return item
                dead.append(item)
        return None

    def _alive(self, key: Hashable, now: float, dead: list[ItemT]) -> Iterator[ItemT]:
        known_dead = {id(item) for item in dead}
        for priority in sorted(self._levels):
            for item in self._levels[priority].of_key(key, now):
                if not is_dead(item, now):
                    yield item
                elif id(item) not in known_dead:
                    dead.append(item)

    def __repr__(self) -> str:
        waiting, reserved = len(self._places), self._reserved
        return f"<RequestQueue {waiting} waiting, {reserved} reserved of {self.capacity}>"


def _fill(alive: Iterable[ItemT], limits: BatchLimits) -> tuple[list[ItemT], bool]:
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
