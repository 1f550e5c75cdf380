"""
When a free device should take a batch: rules side by side, in a simulation.

One device needs `5 ms + 0.1 ms·n` for a batch of n, at most 32. Clients ask again once they are
answered (closed loop), after a network delay and a time to think; or requests come at random (open
loop, Poisson). HTTP takes 0.1 ms of one core for each request and as much for each answer. Nothing
is measured but the rules: the learned one is the code that the server runs.

    python -m benchmarks.dispatch [--seconds 20] [--json FILE]
"""

import argparse
import heapq
import itertools
import json
import random
import statistics
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlserve.batching.cost_model import CostModel
from mlserve.batching.returns import Returns

FIXED_S, EACH_S, MAX_SIZE = 0.005, 0.0001, 32
HTTP_S = 0.0001
COUNTS = (1, 2, 4, 8, 16, 32, 64, 256)
NEVER = 1e-9


class Rule:
    """Takes at once what waits; the others differ in `hold_s` and in what they learn."""

    name = "instant"

    def note_done(self, now: float, n: int, duration_s: float) -> None: ...
    def note_arrival(self, now: float) -> None: ...
    def note_sent(self) -> None: ...
    def hold_s(self, now: float, n_waiting: int, oldest_at: float) -> float:
        return 0.0


class Window(Rule):
    """Waits a fixed time from the arrival of the oldest request, as most servers do."""

    def __init__(self, window_s: float) -> None:
        self.name = f"window {window_s * 1e3:g} ms"
        self._window_s = window_s

    def hold_s(self, now: float, n_waiting: int, oldest_at: float) -> float:
        return 0.0 if n_waiting >= MAX_SIZE else max(0.0, oldest_at + self._window_s - now)


class Quiescence(Rule):
    """Waits until nothing has come for a moment, at most 2 ms."""

    name = "quiescence"

    def __init__(self) -> None:
        self._last_at = 0.0

    def note_arrival(self, now: float) -> None:
        self._last_at = now

    def hold_s(self, now: float, n_waiting: int, oldest_at: float) -> float:
        if n_waiting >= MAX_SIZE or now - oldest_at > 0.002:
            return 0.0
        return max(0.0, self._last_at + 0.0003 - now)


class Learned(Rule):
    """What the server does."""

    name = "learned"

    def __init__(self) -> None:
        self._returns, self._cost = Returns(), CostModel()

    def note_done(self, now: float, n: int, duration_s: float) -> None:
        self._returns.note_done(now, n, self._cost.line[0])
        self._cost.observe(n, duration_s)

    def note_arrival(self, now: float) -> None:
        self._returns.note_arrival(now)

    def note_sent(self) -> None:
        self._returns.note_sent()

    def hold_s(self, now: float, n_waiting: int, oldest_at: float) -> float:
        room = MAX_SIZE - n_waiting
        if room <= 0:
            return 0.0
        fixed_s = self._cost.line[0]
        return self._returns.hold_s(now, n_waiting=n_waiting, n_room=room, fixed_s=fixed_s)


RULES: tuple[Callable[[], Rule], ...] = (
    Rule,
    Quiescence,
    lambda: Window(0.001),
    lambda: Window(0.005),
    Learned,
)


class Load(NamedTuple):
    """Who asks."""

    name: str
    n_clients: int = 0
    network_s: float = 0.0
    """There and back, give or take a fifth."""
    think_s: float = 0.0
    """The mean of an exponential distribution."""
    rate: float = 0.0
    """Requests per second of an open loop."""


class Result(NamedTuple):
    """What came of it."""

    per_s: float
    median_s: float
    p99_s: float


class Simulation:
    """
    One device, one rule, one load.

    Args:
        rule: When batches are taken.
        load: Who asks.
        seed: Of chance.
    """

    def __init__(self, rule: Rule, load: Load, seed: int = 1) -> None:
        self._rule, self._load = rule, load
        self._dice = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._now = self._core_free_at = 0.0
        self._queue: deque[tuple[float, float]] = deque()
        self._is_busy = False
        self._latencies_s: list[float] = []

    def run(self, seconds: float) -> Result:
        """Let so much time pass; the first tenth does not count."""
        load = self._load
        for _ in range(load.n_clients):
            self._at(self._dice.random() * 0.01, self._ask)
        if load.rate:
            self._at(0.0, self._ask_at_random)
        while self._events and self._now < seconds:
            self._now, _, event = heapq.heappop(self._events)
            event()
        counted = self._latencies_s[len(self._latencies_s) // 10 :]
        percentiles = statistics.quantiles(counted, n=100)
        return Result(len(self._latencies_s) / seconds, percentiles[49], percentiles[98])

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def _http(self) -> float:
        """Take the core that does HTTP, and say when it is done."""
        self._core_free_at = max(self._now, self._core_free_at) + HTTP_S
        return self._core_free_at

    def _ask(self) -> None:
        sent_at = self._now
        self._at(self._http(), lambda: self._arrive(sent_at))

    def _ask_at_random(self) -> None:
        self._ask()
        self._at(self._now + self._dice.expovariate(self._load.rate), self._ask_at_random)

    def _arrive(self, sent_at: float) -> None:
        self._queue.append((self._now, sent_at))
        self._rule.note_arrival(self._now)
        self._dispatch()

    def _dispatch(self) -> None:
        if self._is_busy or not self._queue:
            return
        n = min(len(self._queue), MAX_SIZE)
        hold_s = self._rule.hold_s(self._now, n, self._queue[0][0])
        if hold_s > NEVER:
            self._at(self._now + hold_s, self._dispatch)
            return
        self._rule.note_sent()
        batch = [self._queue.popleft() for _ in range(n)]
        self._is_busy = True
        duration_s = FIXED_S + EACH_S * n
        self._at(self._now + duration_s, lambda: self._finish(batch, duration_s))

    def _finish(self, batch: list[tuple[float, float]], duration_s: float) -> None:
        self._is_busy = False
        self._rule.note_done(self._now, len(batch), duration_s)
        self._dispatch()
        for _, sent_at in batch:
            answered_at = self._http()
            self._latencies_s.append(answered_at - sent_at)
            if self._load.n_clients:
                pause_s = self._load.network_s * self._dice.uniform(0.8, 1.2)
                if self._load.think_s:
                    pause_s += self._dice.expovariate(1 / self._load.think_s)
                self._at(answered_at + pause_s, self._ask)


def loads() -> list[Load]:
    """Give the loads that are tried."""
    closed = [
        Load(f"{n} clients{suffix}", n, network_s, think_s)
        for suffix, network_s, think_s in (
            ("", 0.0, 0.0),
            (", 1 ms away", 0.001, 0.0),
            (", 20 ms away", 0.02, 0.0),
            (", 10 ms to think", 0.0, 0.01),
        )
        for n in COUNTS
    ]
    return closed + [Load(f"{rate}/s at random", rate=rate) for rate in (50, 500, 2000)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of simulated time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = [make().name for make in RULES]
    print(f"| requests/s, median ms | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    found = []
    for load in loads():
        results = [Simulation(make(), load).run(options.seconds) for make in RULES]
        cells = [f"{result.per_s:,.0f}, {result.median_s * 1e3:.1f}" for result in results]
        print(f"| {load.name} | {' | '.join(cells)} |", flush=True)
        found.append({"load": load._asdict(), **dict(zip(names, results, strict=True))})
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
