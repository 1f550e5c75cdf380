"""The goals that mlserve has set itself, and how far this run shows that they are met."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.compare.footprint import Footprint
from benchmarks.compare.others import Others
from benchmarks.compare.results import Results, Spread, number
from benchmarks.compare.workloads import ceiling_per_s
from benchmarks.pairs import PAIRS

__all__ = ["Bar", "evaluated"]

Found = Mapping[str, Any] | None

HERE = "this command"
ELSEWHERE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One goal."""

    number: str
    what: str
    goal: str
    measured: str = ELSEWHERE
    is_met: bool | None = None
    """`None` = not measured here."""
    how: str = HERE


def evaluated(results: Results, footprint: Footprint | None, others: Others) -> list[Bar]:
    """Set what was measured beside the goals."""
    return [
        *_of_noop(results, others.get("pairs")),
        *_of_accelerator(results),
        _of_lone_request(others.get("lone_request")),
        *_of_overload(results),
        *_of_overload_of_one(others.get("overload")),
        *_of_encoder(results, others.get("encoders")),
        *_of_placement(others.get("placement")),
        _elsewhere(
            "P8", "generation, 16 clients: tokens/s × FIFO `generate()`", "≥ 5", "generation"
        ),
        *_of_streams(results),
        *_of_footprint(footprint),
    ]


def _of_noop(results: Results, found: Found) -> list[Bar]:
    """Set what short turns have shown beside the goals, or without them the rounds of this run."""
    bars = []
    for name, pair in PAIRS.items():
        how = HERE if found is None else "`python -m benchmarks.pairs`"
        seen = results.ratio("noop", pair.system, pair.other, pair.cell.name, pair.figure)
        if found is not None:
            seen = Spread(*found[name])
        bars.append(_bar(pair.number, pair.what, pair.goal, seen, pair.is_met, how=how))
    return bars


def _of_accelerator(results: Results) -> list[Bar]:
    def share(n: int) -> Spread | None:
        rounds = results.by_round("accelerator", "mlserve", f"{n} connections", "per_s")
        return Spread.of(value / ceiling_per_s(n) for value in rounds.values())

    lone = results.by_round("accelerator", "mlserve", "1 connection", "p50_ms")
    added = Spread.of(p50_ms - 1000 / ceiling_per_s(1) for p50_ms in lone.values())
    return [
        _bar(
            "P3",
            "accelerator, 64 connections: share of the ceiling",
            "≥ 0.95",
            share(64),
            lambda x: x >= 0.95,
        ),
        _bar(
            "P3",
            "accelerator, 256 connections: share of the ceiling",
            "≥ 0.95",
            share(256),
            lambda x: x >= 0.95,
        ),
        _bar(
            "P3b",
            "accelerator, 16 connections: share of the ceiling",
            "≥ 0.7",
            share(16),
            lambda x: x >= 0.7,
        ),
        _bar(
            "P4",
            "lone request of the accelerator: ms above 5.1 ms, with the sleep's own lateness",
            "≤ 0.8",
            added,
            lambda x: x <= 0.8,
        ),
    ]


def _of_lone_request(found: Found) -> Bar:
    goal = "≤ 0.8; ≤ 0.3"
    what = "the same without the sleep's: ms seen by the client; within the server"
    if found is None:
        return _elsewhere("P4", what, goal, "lone_request")
    seen_ms, inside_ms = found["mlserve"]["seen_ms"], found["mlserve"]["inside_ms"]
    is_met = seen_ms <= 0.8 and inside_ms <= 0.3
    said = f"{number(seen_ms)}; {number(inside_ms)}"
    return _elsewhere("P4", what, goal, "lone_request", said, is_met=is_met)


def _of_overload(results: Results) -> list[Bar]:
    peak = results.median("accelerator", "mlserve", "64 connections", "per_s")
    bars = []
    for load in ("1.2", "2", "3"):
        cell = f"{float(load):.0%} of the ceiling"
        good = results.median("overload", "mlserve", cell, "goodput_per_s")
        late_ms = results.median("overload", "mlserve", cell, "refused_p99_ms") or 0.0
        bar = Bar(
            number="P5",
            what=f"accelerator at {load}×, goodput within 250 ms: share of the peak; refusals' p99",
            goal="≥ 95 %; ≤ 20 ms",
        )
        if peak is not None and good is not None:
            said, is_met = f"{good / peak:.0%}; {number(late_ms)} ms", good >= 0.95 * peak
            bar = replace(bar, measured=said, is_met=is_met and late_ms <= 20)
        bars.append(bar)
    return bars


def _of_overload_of_one(found: Found) -> list[Bar]:
    bars = []
    for load, goal in (("2", 0.95), ("5", 0.95), ("10", 0.9)):
        at_most_ms = 50 if load == "10" else 20
        what = f"one request at a time, at {load}×, likewise; share of the peak right after it"
        text = f"≥ {goal:.0%}; ≤ {at_most_ms} ms"
        if found is None:
            bars.append(_elsewhere("P5", what, text, "overload"))
            continue
        figures = found["loads"][load]
        share, late_ms = figures["goodput_share"], figures["refused_p99_ms"]
        said = f"{share:.0%}; {number(late_ms)} ms; {figures['share_after']:.0%}"
        is_met = share >= goal and late_ms <= at_most_ms
        bars.append(_elsewhere("P5", what, text, "overload", said, is_met=is_met))
    return bars


def _of_streams(results: Results) -> list[Bar]:
    cost = results.spread("sse", "mlserve", "8 streams", "server_us")
    return [_bar("P9", "SSE: CPU of the server per event, µs", "≤ 10", cost, lambda x: x <= 10)]


def _of_footprint(footprint: Footprint | None) -> list[Bar]:
    idle = importing = ready = None
    if footprint is not None:
        idle = Spread.of([footprint.idle_mb])
        importing, ready = Spread.of(footprint.import_s), Spread.of(footprint.ready_s)
    return [
        _bar(
            "P10", "memory of an idle server without a model, MB", "≤ 70", idle, lambda x: x <= 70
        ),
        _bar(
            "P11",
            "`import mlserve`, s: best of several",
            "≤ 0.6",
            _best(importing),
            lambda x: x <= 0.6,
        ),
        _bar(
            "P11",
            "ready with a trivial model, s: best of several",
            "≤ 1.2",
            _best(ready),
            lambda x: x <= 1.2,
        ),
    ]


def _best(found: Spread | None) -> Spread | None:
    return None if found is None else Spread(found.least, found.least, found.most)


def _of_encoder(results: Results, found: Found) -> list[Bar]:
    what, goal = "MiniLM over HTTP: share of what the same policy does offline", "≥ 90 %"
    if found is None:
        share = _elsewhere("P6", what, goal, "encoders")
    else:
        ratio = found["ratio"]
        share = _elsewhere("P6", what, goal, "encoders", f"{ratio:.0%}", is_met=ratio >= 0.9)
    best = _best_peer(results)
    against = Bar(number="P6", what="MiniLM: texts/s × the best peer", goal="≥ 1.5")
    if best is not None:
        against = replace(against, measured=number(best), is_met=best >= 1.5)
    return [share, against]


def _of_placement(found: Found) -> list[Bar]:
    what, goal = "processes against threads: requests/s; ms more for a lone one", "≥ 0.8; ≤ 0.2"
    if found is None:
        return [_elsewhere("P7", what, goal, "placement")]
    share, added_ms = found["requests_share"], found["lone_added_ms"]
    said, is_met = f"{share:.2f}; {number(added_ms)}", share >= 0.8 and added_ms <= 0.2
    return [_elsewhere("P7", what, goal, "placement", said, is_met=is_met)]


def _best_peer(results: Results) -> float | None:
    peers = [
        found
        for system in results.systems("minilm")
        if system != "mlserve"
        and (found := results.median("minilm", system, "64 connections", "per_s")) is not None
    ]
    mine = results.median("minilm", "mlserve", "64 connections", "per_s")
    return None if not peers or mine is None else mine / max(peers)


def _bar(
    number_: str,
    what: str,
    goal: str,
    found: Spread | None,
    is_met: Callable[[float], bool],
    *,
    how: str = HERE,
) -> Bar:
    if found is None:
        return Bar(number=number_, what=what, goal=goal, how=how)
    return Bar(
        number=number_,
        what=what,
        goal=goal,
        measured=found.text(),
        is_met=is_met(found.median),
        how=how,
    )


def _elsewhere(
    number_: str,
    what: str,
    goal: str,
    module: str,
    seen: str = ELSEWHERE,
    *,
    is_met: bool | None = None,
) -> Bar:
    how = f"`python -m benchmarks.{module}`"
    return Bar(number=number_, what=what, goal=goal, measured=seen, is_met=is_met, how=how)
