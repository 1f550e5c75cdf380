"""
Whose turn it is in one priority of a queue. Pure.

Source:
    Start-time fair queueing: Goyal, Vin & Cheng 1996, "Start-time Fair Queuing", SIGCOMM. As in
    Sheng et al. 2024, arXiv:2401.00588, a tenant is charged for what is served, not for what it
    sends, so that what expires or is abandoned costs it nothing.
"""

import heapq
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["ItemT", "Level", "Queued", "Share", "by_age", "is_dead"]


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


class Share(Generic[ItemT]):
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


class Level(Generic[ItemT]):
    """The tenants of one priority, and whose turn it is."""

    __slots__ = ("shares", "turn")

    def __init__(self) -> None:
        # Also of tenants that have nothing waiting, if they were served more than `turn` or are
        # the only ones.
        self.shares: dict[str | None, Share[ItemT]] = {}
        self.turn = 0
        """What had been served, before it, to the tenant that the last batch began with."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of this priority waits."""
        return not any(share.lanes for share in self.shares.values())

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
        if self.is_empty:
            share = self.shares[tenant]
            self.shares = {tenant: share}
            self.turn = share.used = 0

    def in_order(self) -> Iterator[ItemT]:
        """Give all of whose turn it is, oldest first, then of who comes next."""
        shares: Iterable[Share[ItemT]] = self.shares.values()
        if len(self.shares) > 1:
            waiting = [share for share in shares if share.lanes]
            shares = sorted(waiting, key=lambda share: (share.used, share.oldest))
        for share in shares:
            if len(share.lanes) == 1:
                yield from next(iter(share.lanes.values())).values()
            else:
                yield from by_age(share.lanes.values())

    def of_key(self, key: Hashable, now: float) -> Iterable[ItemT]:
        """Give what has one key, the dead as well, as tenants would take turns on it."""
        if len(self.shares) == 1:
            (share,) = self.shares.values()
            return share.lanes.get(key, {}).values()
        lanes = [
            (share.used, share.lanes[key]) for share in self.shares.values() if key in share.lanes
        ]
        return _in_turns(lanes, now)


def by_age(lanes: Iterable[dict[int, ItemT]]) -> Iterator[ItemT]:
    """Give what is in several lanes, oldest first."""
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
        used += 0 if is_dead(item, now) else _charge(item)
        if (entry := next(entries, None)) is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (used, *entry, entries))


def _charge(item: Queued) -> int:
    """Say what an item costs its tenant; nothing is free, or one could take every turn."""
    return max(1, item.cost)


def _sequence(entry: tuple[int, Any]) -> int:
    return entry[0]


def is_dead(item: Queued, now: float) -> bool:
    """Say whether an item must not run any more."""
    return item.abandoned or item.deadline <= now
