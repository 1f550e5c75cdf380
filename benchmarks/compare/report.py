"""The tables and charts of a run. Pure."""

from collections.abc import Sequence

from benchmarks.compare.bars import Bar
from benchmarks.compare.machine import Machine
from benchmarks.compare.results import Results, number
from benchmarks.compare.systems import SYSTEMS
from benchmarks.compare.workloads import WORKLOADS, Cell, Workload

from mlserve.loadtest.chart import bars

__all__ = ["charts", "page_parts", "table", "whole"]


def whole(results: Results, machine: Machine, found: Sequence[Bar]) -> str:
    """Give the whole report as Markdown."""
    parts = ["# Benchmarks", machine.as_markdown()]
    for name, text in page_parts(results, machine, found).items():
        if name in WORKLOADS:
            parts += [f"## {WORKLOADS[name].title}", text]
    parts += ["## The bars", bar_table(found)]
    if results.absences:
        parts += ["## Left out", absence_list(results)]
    return "\n\n".join(parts) + "\n"


def page_parts(results: Results, machine: Machine, found: Sequence[Bar]) -> dict[str, str]:
    """Give what stands between the markers of the page, by name."""
    parts = {"machine": machine.as_markdown(), "bars": bar_table(found)}
    for workload in WORKLOADS.values():
        if results.systems(workload.name):
            parts[workload.name] = _sections(results, workload)
    parts["absences"] = absence_list(results) or "Nothing was left out."
    return parts


def _sections(results: Results, workload: Workload) -> str:
    return "\n\n".join([throughput_table(results, workload), latency_table(results, workload)])


def throughput_table(results: Results, workload: Workload) -> str:
    """Give what each system does, beside the ceiling or the baseline."""
    cells = _cells(results, workload)
    head = [f"{workload.unit}: median (least-most)"]
    for cell in cells:
        head += [cell.name, *_ratio_names(results, workload, cell)]
    rows = []
    for system in _order(results, workload):
        row = [SYSTEMS[system].title]
        for cell in cells:
            spread = results.spread(workload.name, system, cell.name, workload.measure)
            row.append("-" if spread is None else spread.text())
            row += _ratios(results, workload, system, cell)
        rows.append(row)
    return table(head, rows)


def latency_table(results: Results, workload: Workload) -> str:
    """Give how long answers take, what they cost, and how many were none."""
    cells = _cells(results, workload)
    head = ["p50 / p99 in ms; CPU of the server"]
    unit = "event" if workload.measure == "events_per_s" else "answer"
    for cell in cells:
        head += [cell.name, f"µs per {unit}", *(["not answered well"] if cell.per_s else [])]
    rows = []
    for system in _order(results, workload):
        row = [SYSTEMS[system].title]
        for cell in cells:
            p50, p99, cost, sent, bad = (
                results.median(workload.name, system, cell.name, figure)
                for figure in ("p50_ms", "p99_ms", "server_us", "n_sent", "n_bad")
            )
            row.append("-" if p50 is None or p99 is None else f"{number(p50)} / {number(p99)}")
            row.append("-" if cost is None else number(cost))
            if cell.per_s:
                row.append(f"{bad / sent:.0%}" if bad is not None and sent else "-")
        rows.append(row)
    return table(head, rows)


def bar_table(found: Sequence[Bar]) -> str:
    """Give what was set as a goal beside what was measured."""
    verdicts = {True: "met", False: "missed", None: ""}
    return table(
        ("", "what", "goal", "measured", "", "how"),
        [(b.number, b.what, b.goal, b.measured, verdicts[b.is_met], b.how) for b in found],
    )


def absence_list(results: Results) -> str:
    """Give what was left out, and why."""
    lines = dict.fromkeys(
        f"- {SYSTEMS[a.system].title}, {a.workload}: {a.why}" for a in results.absences
    )
    return "\n".join(lines)


def charts(results: Results) -> dict[str, str]:
    """Give pictures as SVG, by name."""
    found = {}
    for workload, cell, title in (
        ("noop", "64 connections", "A model that does nothing, 64 connections"),
        ("accelerator", "16 connections", "Simulated accelerator, 16 connections"),
        ("accelerator", "64 connections", "Simulated accelerator, 64 connections"),
        ("overload", "120% of the ceiling", "Accelerator asked for 120 % of its ceiling"),
        ("minilm", "64 connections", "MiniLM, mixed lengths, 64 connections"),
        ("sse", "8 streams", "Server-sent events, 8 streams"),
    ):
        what = WORKLOADS[workload]
        values = [
            (SYSTEMS[system].title, value)
            for system in _order(results, what)
            if (value := results.median(workload, system, cell, what.measure)) is not None
        ]
        if values:
            found[f"{workload}-{cell.split()[0].rstrip('%')}"] = bars(title, what.unit, values)
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _order(results: Results, workload: Workload) -> list[str]:
    measured = results.systems(workload.name)
    return [name for name in SYSTEMS if name in measured]


def _cells(results: Results, workload: Workload) -> list[Cell]:
    measured = results.cells(workload.name)
    return [cell for cell in workload.cells if cell.name in measured]


def _ratio_names(results: Results, workload: Workload, cell: Cell) -> list[str]:
    names = []
    if cell.ceiling is not None:
        names.append(f"of {number(cell.ceiling)}")
    if workload.baseline in results.systems(workload.name):
        names.append(f"× {SYSTEMS[workload.baseline].title}")
    return names


def _ratios(results: Results, workload: Workload, system: str, cell: Cell) -> list[str]:
    values = []
    if cell.ceiling is not None:
        median = results.median(workload.name, system, cell.name, workload.measure)
        values.append("-" if median is None else f"{median / cell.ceiling:.0%}")
    if workload.baseline in results.systems(workload.name):
        ratio = results.ratio(workload.name, system, workload.baseline, cell.name, workload.measure)
        values.append("-" if ratio is None else f"{ratio.median:.2f}")
    return values
