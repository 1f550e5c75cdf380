"""Tables, goals and the page, from samples made by hand."""

import itertools
from pathlib import Path

import pytest
from benchmarks import __main__ as command
from benchmarks.__main__ import Record, main, rewrite
from benchmarks.compare.bars import Bar, evaluated
from benchmarks.compare.footprint import Footprint
from benchmarks.compare.machine import Machine
from benchmarks.compare.others import Others
from benchmarks.compare.report import charts, whole
from benchmarks.compare.results import Absence, Results, Sample
from benchmarks.compare.workloads import WORKLOADS

MACHINE = Machine(
    cpu="An Abacus",
    n_cores=2,
    python="3.11.7",
    system="Linux 6",
    date="2026-01-02 03:04 UTC",
    load_average=(0.5, 0.4, 0.3),
    busy=("make 80%",),
    versions={"here": {"fastapi": "1.0"}, "mosec": {"mosec": "0.9"}},
    command="python -m benchmarks run",
)
FOOTPRINT = Footprint(import_s=[0.5, 0.7], ready_s=[1.3, 1.4], idle_mb=60.0)
OTHERS: Others = {
    "overload": {
        "loads": {
            load: {"goodput_share": 0.93, "refused_p99_ms": 30.0, "share_after": 1.0}
            for load in ("2", "5", "10")
        }
    },
    "encoders": {"ratio": 0.91},
    "placement": {"requests_share": 0.85, "lone_added_ms": 0.3},
    "lone_request": {"mlserve": {"seen_ms": 0.5, "inside_ms": 0.2}},
}


def _results() -> Results:
    figures: dict[str, float | None] = {
        "p99_ms": 9.0,
        "server_us": 8.0,
        "n_sent": 100.0,
        "n_bad": 25.0,
        "refused_p99_ms": 3.0,
    }
    values = {"mlserve": 3000.0, "fastapi": 1000.0, "mosec": 2000.0}
    samples = [
        Sample(
            workload=workload.name,
            system=system,
            cell=cell.name,
            round=number,
            figures=figures
            | {workload.measure: value * (1 + number / 10), "p50_ms": 1000.0 / value},
        )
        for workload in WORKLOADS.values()
        for cell in workload.cells
        for (system, value), number in itertools.product(values.items(), range(3))
    ]
    return Results(samples, [Absence(workload="noop", system="ray", why="pip says no")])


def _record() -> Record:
    return Record(results=_results(), machine=MACHINE, footprint=FOOTPRINT, others=OTHERS)


def _bar(bars: list[Bar], what: str) -> Bar:
    [found] = [bar for bar in bars if what in bar.what]
    return found


def test_goals_are_met_or_missed_by_the_medians() -> None:
    bars = evaluated(_results(), FOOTPRINT, OTHERS)

    assert _bar(bars, "no-op, 64 connections").measured == "3.00"
    assert _bar(bars, "no-op, 64 connections").is_met is True
    assert _bar(bars, "with `api_keys()`").measured == "-"
    assert _bar(bars, "64 connections: share of the ceiling").is_met is False
    assert _bar(bars, "16 connections: share of the ceiling").is_met is True
    assert _bar(bars, "CPU of the server per event").is_met is True
    assert _bar(bars, "`import mlserve`").measured == "0.50 (0.50-0.70)"
    assert _bar(bars, "`import mlserve`").is_met is True
    assert _bar(bars, "ready with a trivial model").is_met is False
    assert _bar(bars, "without the sleep's").measured == "0.50; 0.20"
    assert _bar(bars, "accelerator at 3×").measured == "100%; 3.00 ms"
    assert _bar(bars, "accelerator at 3×").is_met is True
    assert _bar(bars, "at a time, at 2×").is_met is False
    assert _bar(bars, "at 10×").measured == "93%; 30.0 ms; 100%"
    assert _bar(bars, "at 10×").is_met is True
    assert _bar(bars, "share of what the same policy does offline").is_met is True
    assert _bar(bars, "MiniLM: texts/s").measured == "1.50"
    assert _bar(bars, "processes against threads").is_met is False


def test_pairs_of_short_turns_go_before_the_rounds_of_a_run() -> None:
    names = ("requests", "requests_with_keys", "lone", "lone_to_def", "lone_inline")
    pairs = {name: [1.5, 1.4, 1.7] for name in names}
    bars = evaluated(_results(), FOOTPRINT, {**OTHERS, "pairs": pairs})

    assert _bar(bars, "no-op, 64 connections").measured == "1.50 (1.40-1.70)"
    assert _bar(bars, "no-op, 64 connections").is_met is False
    assert "pairs" in _bar(bars, "no-op, 64 connections").how


def test_what_is_not_measured_here_says_where_it_is() -> None:
    bars = evaluated(Results([]), None, {})

    assert {bar.is_met for bar in bars} == {None}
    commands = {bar.how for bar in bars}
    for module in ("overload", "encoders", "placement", "generation"):
        assert f"`python -m benchmarks.{module}`" in commands


def test_the_report_names_machine_ratios_spread_and_what_was_left_out() -> None:
    results = _results()
    report = whole(results, MACHINE, evaluated(results, FOOTPRINT, OTHERS))

    assert "An Abacus" in report
    assert "make 80%" in report
    assert "mosec 0.9" in report
    assert "| mlserve | 3,300 (3,000-3,600) | 3.00 |" in report
    assert "| 85% |" in report  # of 3,902
    assert "| 25% |" in report  # not answered well in the open loop
    assert "- Ray Serve, noop: pip says no" in report


def test_every_table_is_as_wide_as_its_head() -> None:
    results = _results()
    report = whole(results, MACHINE, evaluated(results, FOOTPRINT, OTHERS))

    for block in report.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


def test_charts_show_what_was_measured() -> None:
    pictures = charts(_results())

    assert {"noop-64", "accelerator-16", "overload-120", "sse-8"} <= pictures.keys()
    assert all("FastAPI" in picture for picture in pictures.values())
    assert charts(Results([])) == {}


def test_a_page_keeps_what_stands_outside_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- noop -->\nold\n<!-- end of noop -->\nafter\n", encoding="utf-8")

    for _ in range(2):  # the second time changes nothing
        rewrite(page, _record())

    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- noop -->\n\n| requests/s")
    assert text.endswith("\n\n<!-- end of noop -->\nafter\n")
    assert "old" not in text
    assert text.count("3,300") == 3  # once for each load
    assert (tmp_path / "performance-noop-64.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_report_is_made_again_from_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- bars -->\n<!-- end of bars -->\n", encoding="utf-8")
    monkeypatch.setattr(command, "PAGE", page)
    _record().write(tmp_path)

    assert main(["report", str(tmp_path / "results.json"), "--page"]) == 0

    assert capsys.readouterr().out.strip() == _record().report().strip()
    assert "| P1 |" in page.read_text(encoding="utf-8")
