"""What was measured, and medians, spreads and ratios of it. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Absence", "Results", "Sample", "Spread", "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One load on one system in one round."""

    workload: str
    system: str
    cell: str
    round: int
    figures: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """What was to be measured and could not be."""

    workload: str
    system: str
    why: str


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Give that of some values; `None` without any."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1]) if found else None

    def text(self) -> str:
        """Write it as `1,234 (1,200-1,300)`; one value alone without the range."""
        median, least, most = (number(value) for value in (self.median, self.least, self.most))
        return median if least == most else f"{median} ({least}-{most})"


class Results:
    """
    The samples of a run.

    Args:
        samples: All that was measured.
        absences: All that could not be.
    """

    def __init__(self, samples: Sequence[Sample], absences: Sequence[Absence] = ()) -> None:
        self.samples = list(samples)
        self.absences = list(absences)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Results":
        """Read what `as_json` has given."""
        samples = [Sample(**sample) for sample in values["samples"]]
        return cls(samples, [Absence(**absence) for absence in values["absences"]])

    def is_absent(self, workload: str, system: str) -> bool:
        """Say whether a system failed at a workload."""
        return any((a.workload, a.system) == (workload, system) for a in self.absences)

    def systems(self, workload: str) -> list[str]:
        """Give the systems that were measured with a workload, in the order of their first turn."""
        return list(dict.fromkeys(s.system for s in self.samples if s.workload == workload))

    def cells(self, workload: str) -> list[str]:
        """Give the loads of a workload."""
        return list(dict.fromkeys(s.cell for s in self.samples if s.workload == workload))

    def by_round(self, workload: str, system: str, cell: str, figure: str) -> dict[int, float]:
        """Give one figure in each round in which it is known."""
        return {
            sample.round: value
            for sample in self.samples
            if (sample.workload, sample.system, sample.cell) == (workload, system, cell)
            and (value := sample.figures.get(figure)) is not None
        }

    def spread(self, workload: str, system: str, cell: str, figure: str) -> Spread | None:
        """Give one figure over the rounds."""
        return Spread.of(self.by_round(workload, system, cell, figure).values())

    def median(self, workload: str, system: str, cell: str, figure: str) -> float | None:
        """Give the median of one figure over the rounds."""
        found = self.spread(workload, system, cell, figure)
        return None if found is None else found.median

    def ratio(
        self, workload: str, system: str, other: str, cell: str, figure: str
    ) -> Spread | None:
        """Give how a figure stands to that of another system, each round by itself."""
        mine = self.by_round(workload, system, cell, figure)
        theirs = self.by_round(workload, other, cell, figure)
        return Spread.of(mine[n] / theirs[n] for n in mine.keys() & theirs.keys() if theirs[n])

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {
            "samples": [asdict(sample) for sample in self.samples],
            "absences": [asdict(absence) for absence in self.absences],
        }


def number(value: float) -> str:
    """Write a number with three digits that count, or as a whole one."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
