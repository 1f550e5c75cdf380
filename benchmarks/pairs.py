"""
How mlserve stands to FastAPI with a model that does nothing, measured in pairs.

All servers run at once, as those that nobody asks take nothing, on one core. They are asked in
short turns from another core, forwards in one round and backwards in the next, so that whatever
else the machine does meets all alike. Each turn is set beside FastAPI's in the same round; what is
shown is the median of these ratios, and the half of them that is nearest to it.

    python -m benchmarks.pairs [--rounds 16] [--share 0.2] [--json FILE]
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.measure import Figures, measured
from benchmarks.compare.servers import check, started
from benchmarks.compare.systems import SYSTEMS
from benchmarks.compare.workloads import WORKLOADS, Cell

NOOP = WORKLOADS["noop"]
CELLS = {cell.n_clients: cell for cell in NOOP.cells if cell.n_clients in (1, 64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One ratio."""

    number: str
    """That of its goal."""
    what: str
    system: str
    other: str
    n_clients: int
    figure: str
    goal: str
    least: float = 0.0
    most: float = float("inf")

    @property
    def cell(self) -> Cell:
        """How the servers are asked."""
        return CELLS[self.n_clients]

    def is_met(self, ratio: float) -> bool:
        """Say whether a ratio reaches the goal."""
        return self.least <= ratio <= self.most


PAIRS = {
    "requests": Pair(
        number="P1",
        what="no-op, 64 connections: requests/s × FastAPI",
        system="mlserve",
        other="fastapi",
        n_clients=64,
        figure="per_s",
        goal="≥ 2",
        least=2.0,
    ),
    "requests_with_keys": Pair(
        number="P1",
        what="the same with `api_keys()`",
        system="mlserve-keys",
        other="fastapi",
        n_clients=64,
        figure="per_s",
        goal="≥ 2",
        least=2.0,
    ),
    "lone": Pair(
        number="P2",
        what="no-op, 1 connection: p50 × FastAPI `async def`",
        system="mlserve",
        other="fastapi",
        n_clients=1,
        figure="p50_ms",
        goal="≤ 1.05",
        most=1.05,
    ),
    "lone_to_def": Pair(
        number="P2",
        what="the same × FastAPI `def`",
        system="mlserve",
        other="fastapi-def",
        n_clients=1,
        figure="p50_ms",
        goal="≤ 0.5",
        most=0.5,
    ),
    "lone_inline": Pair(
        number="P2",
        what="`async def infer`, the same × FastAPI `async def`",
        system="mlserve-inline",
        other="fastapi",
        n_clients=1,
        figure="p50_ms",
        goal="≤ 0.7",
        most=0.7,
    ),
}
"""What is set beside what, by the name in the JSON."""


def main() -> int:
    """Measure, print a table, and say whether the goals are met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.2, help="of a load's usual 2 s")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = measure(options.rounds, options.share)
    found = {name: spread_of(ratios_of(pair, rounds)) for name, pair in PAIRS.items()}
    for name, pair in PAIRS.items():
        median, low, high = found[name]
        said = f"{median:.2f} ({low:.2f}-{high:.2f}), goal {pair.goal}"
        print(f"{pair.what}: {said}: {'met' if pair.is_met(median) else 'MISSED'}")
    busiest = max(figures.client_cores for turns in rounds for figures in turns.values())
    print(f"the load took {busiest:.0%} of its core at most")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0 if all(pair.is_met(found[name][0]) for name, pair in PAIRS.items()) else 1


def measure(n_rounds: int, share: float) -> list[dict[tuple[str, int], Figures]]:
    """Give what came of each turn of each round, by the system and the number of clients."""
    names = list(dict.fromkeys(n for pair in PAIRS.values() for n in (pair.system, pair.other)))
    rounds = []
    with ExitStack() as stack:
        servers = {}
        for name in names:
            python = Path(sys.executable)
            servers[name] = stack.enter_context(started(SYSTEMS[name], NOOP, python))
            check(SYSTEMS[name], NOOP, servers[name])
        for number in range(n_rounds):
            turns = {}
            for n_clients, cell in CELLS.items():
                for name in names if number % 2 else reversed(names):
                    turns[name, n_clients] = measured(
                        SYSTEMS[name], NOOP, cell, servers[name], share=share, seed=number
                    )
            rounds.append(turns)
    return rounds


def ratios_of(pair: Pair, rounds: Iterable[dict[tuple[str, int], Figures]]) -> list[float]:
    """Give one ratio a round."""
    return [
        getattr(turns[pair.system, pair.n_clients], pair.figure)
        / getattr(turns[pair.other, pair.n_clients], pair.figure)
        for turns in rounds
    ]


def spread_of(ratios: list[float]) -> tuple[float, float, float]:
    """Give the median, and between what the half lies that is nearest to it."""
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return median, low, high


if __name__ == "__main__":
    sys.exit(main())
