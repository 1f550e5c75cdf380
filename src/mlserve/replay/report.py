"""What came of all replayed requests, in numbers. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mlserve.loadtest.summary import percentile
from mlserve.replay.comparing import Gap, Outcome, Tolerance

__all__ = ["Latency", "Place", "Report", "reported"]

_MOST_PLACES = 20
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long requests took that succeeded both times, in milliseconds."""

    old_median: float
    old_p95: float
    new_median: float
    new_p95: float
    old_batch: float
    """Of how many requests the batches were on average that they were in."""
    new_batch: float

    @property
    def ratio(self) -> float | None:
        """How many times the old median the new one is; `None` where the old one is nought."""
        return self.new_median / self.old_median if self.old_median else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place of answers that differs in some of them."""

    pattern: str
    """Where it is, such as `/embedding/*`; `*` is any index of a list."""
    n_requests: int
    """In how many answers it differs."""
    absolute: float
    """The largest absolute difference of two numbers; 0 if none of them are numbers."""
    relative: float
    """The largest relative one, likewise."""
    kinds: tuple[str, ...]
    """How it differs: `changed`, `type`, `added`, `removed`."""
    request_ids: tuple[str, ...]
    """Some of the requests, the worst first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of a replay."""

    model: str
    version: str
    """The version of the records."""
    target: str
    """The server that was asked now, as `reviews:server`."""
    against: str
    """Its version."""
    tolerance: Tolerance
    outcomes: Sequence[Outcome] = field(repr=False)
    """One for each request, in the order in which they were answered."""
    left_out: Mapping[str, int]
    """How many records were not replayed, by the reason."""
    notes: Sequence[str] = ()
    """What whoever reads the figures should know."""
    n_same: int
    n_different: int
    n_failed: int
    """How many were answered with success, and are no more."""
    changes: Mapping[str, int]
    """How many answers have another status or code, by both, such as `200 → 500 model_error`."""
    places: Sequence[Place]
    """Where answers differ, the worst first; at most 20."""
    total: Latency | None
    """From the request to the whole answer; the recorded ones over HTTP."""
    infer: Latency | None
    """In `infer`, of what is no stream."""

    @property
    def n_requests(self) -> int:
        """How many were replayed."""
        return len(self.outcomes)

    @property
    def title(self) -> str:
        """What was replayed, and on what."""
        return f"{self.model} {self.version}, replayed on {self.against} of {self.target}"

    @property
    def batches(self) -> str | None:
        """A sentence on the batches, without which the times cannot be compared."""
        if self.infer is None:
            return None
        return (
            f"Batches were of {self.infer.old_batch:.1f} requests on average when they were"
            f" recorded and of {self.infer.new_batch:.1f} now, which the concurrency decides."
        )

    @property
    def share(self) -> float:
        """Which share of them differs or fails."""
        return (self.n_different + self.n_failed) / max(1, self.n_requests)

    @property
    def named(self) -> list[Outcome]:
        """Some requests that differ: failed ones first, then by their largest difference."""
        found = [outcome for outcome in self.outcomes if outcome.verdict != "same"]
        return sorted(found, key=_badness)[:_MOST_NAMED]

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON values, with every request that is not the same."""
        figures = {
            "model": self.model,
            "version": self.version,
            "target": self.target,
            "against": self.against,
            "tolerance": asdict(self.tolerance),
            "requests": self.n_requests,
            "same": self.n_same,
            "different": self.n_different,
            "failed": self.n_failed,
            "share": self.share,
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "changes": dict(self.changes),
            "places": [asdict(place) for place in self.places],
        }
        for name, latency in (("total_ms", self.total), ("infer_ms", self.infer)):
            figures[name] = latency and {**asdict(latency), "ratio": latency.ratio}
        figures["differing"] = [asdict(each) for each in self.outcomes if each.verdict != "same"]
        return figures


def reported(
    outcomes: Sequence[Outcome],
    *,
    model: str,
    version: str,
    target: str,
    against: str,
    tolerance: Tolerance,
    left_out: Mapping[str, int],
    notes: Sequence[str] = (),
) -> Report:
    """
    Put together what came of a replay.

    Args:
        outcomes: One for each request.
        model: The model's name.
        version: The version of the records.
        target: The server that was asked now, as `reviews:server`.
        against: Its version.
        tolerance: How far numbers could differ.
        left_out: How many records were not replayed, by the reason.
        notes: What whoever reads the figures should know.
    """
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    good = [outcome for outcome in outcomes if outcome.was == outcome.now == "200"]
    return Report(
        model=model,
        version=version,
        target=target,
        against=against,
        tolerance=tolerance,
        outcomes=outcomes,
        left_out={why: n for why, n in left_out.items() if n},
        notes=notes,
        n_same=verdicts["same"],
        n_different=verdicts["different"],
        n_failed=verdicts["failed"],
        changes=dict(Counter(f"{o.was} → {o.now}" for o in outcomes if o.was != o.now)),
        places=_places(outcomes),
        total=_latency(good, lambda o: o.old_total_ms, lambda o: o.new_total_ms),
        infer=_latency(
            [outcome for outcome in good if outcome.old_infer_ms and outcome.new_infer_ms],
            lambda o: o.old_infer_ms,
            lambda o: o.new_infer_ms,
        ),
    )


def _badness(outcome: Outcome) -> tuple[bool, bool, float]:
    is_shape = any(gap.kind != "changed" for gap in outcome.gaps)
    largest = max((gap.absolute for gap in outcome.gaps), default=0.0)
    return outcome.was == outcome.now, not is_shape, -largest


def _places(outcomes: Iterable[Outcome]) -> list[Place]:
    found: dict[str, list[tuple[Gap, str]]] = {}
    for outcome in outcomes:
        for gap in outcome.gaps:
            found.setdefault(gap.pattern, []).append((gap, outcome.request_id))
    places = [_place(pattern, entries) for pattern, entries in found.items()]
    places.sort(key=lambda each: (each.kinds == ("changed",), -each.absolute, -each.n_requests))
    return places[:_MOST_PLACES]


def _place(pattern: str, entries: list[tuple[Gap, str]]) -> Place:
    entries.sort(key=lambda entry: -entry[0].absolute)
    return Place(
        pattern=pattern,
        n_requests=len(entries),
        absolute=entries[0][0].absolute,
        relative=max(gap.relative for gap, _ in entries),
        kinds=tuple(sorted({gap.kind for gap, _ in entries})),
        request_ids=tuple(request_id for _, request_id in entries[:3]),
    )


def _latency(
    outcomes: Sequence[Outcome], old: Callable[[Outcome], float], new: Callable[[Outcome], float]
) -> Latency | None:
    if not outcomes:
        return None
    olds, news = sorted(map(old, outcomes)), sorted(map(new, outcomes))
    return Latency(
        old_median=percentile(olds, 0.5),
        old_p95=percentile(olds, 0.95),
        new_median=percentile(news, 0.5),
        new_p95=percentile(news, 0.95),
        old_batch=sum(outcome.old_batch_size for outcome in outcomes) / len(outcomes),
        new_batch=sum(outcome.new_batch_size for outcome in outcomes) / len(outcomes),
    )
