"""
When a batch is sent. Pure: the clock is passed in.

A free replica takes what is queued at once, unless a rule holds it back because there is evidence
that waiting a moment serves everybody better. Each rule looks at the same `Situation` and says for
how long; the longest wins. Rules that learn keep what they learned in objects of their own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["ArrivalRate", "Rule", "Situation", "hold_s", "wait_for_arrivals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a rule may look at; a replica is free and at least one request waits."""

    now: float
    """Monotonic seconds."""
    n_waiting: int
    """How many requests the batch would hold now."""
    is_full: bool
    """Whether nothing could join the batch."""
    oldest_at: float
    """When the oldest request of the batch entered the queue, in monotonic seconds."""
    arrivals_per_s: float
    """How many requests per second arrive while others wait or run."""
    fixed_cost_s: float
    """What a batch costs whatever its size, in seconds; 0 when unknown."""
    cost_each_s: float
    """What each request adds to a batch, in seconds; 0 when unknown."""


Rule = Callable[[Situation], float]
"""For how many more seconds to wait; 0 = send the batch now."""


def hold_s(situation: Situation, rules: Sequence[Rule]) -> float:
    """Say for how many more seconds to wait; 0 = send the batch now. A full batch never waits."""
    if situation.is_full:
        return 0.0
    return max((rule(situation) for rule in rules), default=0.0)


def wait_for_arrivals(max_wait_s: float) -> Rule:
    """
    Make the rule behind `Batching.max_wait_s`.

    It waits up to `max_wait_s` from the arrival of the oldest request, but only while at least
    one more request is expected to arrive in what is left of that time.
    """

    def rule(situation: Situation) -> float:
        left_s = situation.oldest_at + max_wait_s - situation.now
        if left_s <= 0 or situation.arrivals_per_s * left_s < 1:
            return 0.0
        return left_s

    return rule


class ArrivalRate:
    """
    How many requests per second arrive in company: while another one waits or runs.

    One sequential client never counts, so it is never made to wait. The memory fades over
    eight times the longest wait, so that the evidence for a wait is at least eight arrivals.

    Args:
        memory_s: Over how many seconds an arrival fades to 1/e.
    """

    def __init__(self, memory_s: float) -> None:
        self._memory_s = max(memory_s, 1e-3)
        self._count = 0.0
        self._at = -math.inf

    def observe(self, now: float, *, in_company: bool) -> None:
        """Learn that a request arrived at `now`, in monotonic seconds."""
        if in_company:
            self._count = self._faded(now) + 1
            self._at = now

    def per_second(self, now: float) -> float:
        """Say how many requests per second arrive."""
        return self._faded(now) / self._memory_s

    def _faded(self, now: float) -> float:
        return self._count * math.exp(-max(0.0, now - self._at) / self._memory_s)
