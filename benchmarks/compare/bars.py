"""The goals that mlserve has set itself, and how far this run shows that they are met."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.compare.footprint import Footprint
from benchmarks.compare.results import Results, Spread, number
from benchmarks.compare.workloads import ceiling_per_s

__all__ = ["Bar", "evaluated"]

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


def evaluated(results: Results, footprint: Footprint | None) -> list[Bar]:
    """Set what was measured beside the goals."""
    return [
        *_of_noop(results),
        *_of_accelerator(results),
        _elsewhere(
            "P5",
            "goodput within 250 ms under overload; refusals' p99",
            "≥ 95 % (≥ 90 % at 10×); ≤ 20 ms (≤ 50 ms)",
            "overload",
            _goodput(results),
        ),
        _elsewhere(
            "P6",
            "MiniLM over HTTP: share of what the same policy does offline; × best peer",
            "≥ 90 %; ≥ 1.5",
            "encoders",
            _encoder(results),
        ),
        _elsewhere(
            "P7",
            "processes against threads: requests/s; lone request",
            "≥ 0.8; ≤ +0.2 ms",
            "placement",
        ),
        _elsewhere(
            "P8", "generation, 16 clients: tokens/s × FIFO `generate()`", "≥ 5", "generation"
        ),
        *_of_streams(results),
        *_of_footprint(footprint),
    ]


def _of_noop(results: Results) -> list[Bar]:
    def ratio(system: str, other: str, cell: str, figure: str) -> Spread | None:
        return results.ratio("noop", system, other, cell, figure)

    return [
        _bar(
            "P1",
            "no-op, 64 connections: requests/s × FastAPI",
            "≥ 2",
            ratio("mlserve", "fastapi", "64 connections", "per_s"),
            lambda x: x >= 2,
        ),
        _bar(
            "P1",
            "the same with `api_keys()`",
            "≥ 2",
            ratio("mlserve-keys", "fastapi", "64 connections", "per_s"),
            lambda x: x >= 2,
        ),
        _bar(
            "P2",
            "no-op, 1 connection: p50 × FastAPI `async def`",
            "≤ 1.05",
            ratio("mlserve", "fastapi", "1 connection", "p50_ms"),
            lambda x: x <= 1.05,
        ),
        _bar(
            "P2",
            "the same × FastAPI `def`",
            "≤ 0.5",
            ratio("mlserve", "fastapi-def", "1 connection", "p50_ms"),
            lambda x: x <= 0.5,
        ),
        _bar(
            "P2",
            "`async def infer`, the same × FastAPI `async def`",
            "≤ 0.7",
            ratio("mlserve-inline", "fastapi", "1 connection", "p50_ms"),
            lambda x: x <= 0.7,
        ),
    ]


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
            how=f"{HERE}; without the sleep's: `python -m benchmarks.lone_request`",
        ),
    ]


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


def _goodput(results: Results) -> str:
    peak = results.median("accelerator", "mlserve", "64 connections", "per_s")
    good = results.median("overload", "mlserve", "120% of the ceiling", "goodput_per_s")
    late = results.median("overload", "mlserve", "120% of the ceiling", "refused_p99_ms")
    if peak is None or good is None:
        return ELSEWHERE
    refused = "" if late is None else f"; {number(late)} ms"
    return f"accelerator at 1.2×: {good / peak:.0%}{refused}"


def _encoder(results: Results) -> str:
    peers = [
        found
        for system in results.systems("minilm")
        if system != "mlserve"
        and (found := results.median("minilm", system, "64 connections", "per_s")) is not None
    ]
    mine = results.median("minilm", "mlserve", "64 connections", "per_s")
    return ELSEWHERE if not peers or mine is None else f"× best peer: {mine / max(peers):.2f}"


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


def _elsewhere(number_: str, what: str, goal: str, module: str, seen: str = ELSEWHERE) -> Bar:
    how = f"`python -m benchmarks.{module}`"
    return Bar(number=number_, what=what, goal=goal, measured=seen, how=how)
