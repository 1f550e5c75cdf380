"""
Measures what `docs/explanation/reliability.md` says, and writes it there.

Every figure comes from a test or a benchmark that anybody can run; this runs them one after the
other, with several seeds where chance decides, and puts what they measured into one table.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.soak import soak
from tests.faults.draining import stop_under_load
from tests.faults.processes import serving
from tests.faults.table import MODES
from tests.figures import VARIABLE

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "reliability.md"
TABLE = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)
KILL_S = 20.0
LEAST_MINUTES, LEAST_SEEDS, LEAST_STOPS = 10.0, 5, 20

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    figure: str
    measured: str
    target: str
    is_met: bool
    source: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/reliability", description=__doc__)
    parser.add_argument("--minutes", type=float, default=LEAST_MINUTES, help="of the soak")
    parser.add_argument("--seeds", type=int, default=LEAST_SEEDS, help="runs of the fault tests")
    parser.add_argument("--stops", type=int, default=LEAST_STOPS, help="SIGTERMs under load")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    options = parser.parse_args()
    rows = [
        *_step("faults", lambda: rows_of_faults(options.seed, options.seeds)),
        *_step("bad inputs", rows_of_inputs),
        *_step("crowds and slow clients", rows_of_crowds),
        *_step("stops", lambda: rows_of_stops(options.stops, options.seed)),
        *_step("overload", rows_of_overload),
        *_step("soak", lambda: rows_of_soak(options.minutes, options.seed)),
        *_step("soak with kills", lambda: rows_of_soak(options.minutes, options.seed, KILL_S)),
    ]
    print(table := as_markdown(rows))
    is_whole = (
        options.minutes >= LEAST_MINUTES
        and options.seeds >= LEAST_SEEDS
        and options.stops >= LEAST_STOPS
    )
    missed = [row.figure for row in rows if not row.is_met]
    if is_whole and not missed:
        text = TABLE.sub(lambda _: table, PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(text, encoding="utf-8")
    print("\n".join(f"MISSED: {figure}" for figure in missed) or "All is as it should be.")
    return 1 if missed else 0


def _step(name: str, measure: Callable[[], list[Row]]) -> list[Row]:
    print(f"== {name}", flush=True)
    return measure()


def rows_of_faults(first_seed: int, n_seeds: int) -> list[Row]:
    """Run the fault tests with several seeds."""
    found = []
    for seed in range(first_seed, first_seed + n_seeds):
        found += measured_by("tests/faults", FAULT_SEED=str(seed))
    runs = [figures for figures in found if figures["name"] == "faults"]
    deaths = [figures for figures in found if figures["name"] == "deaths"]

    def total(key: str) -> int:
        return sum(run[key] for run in runs)

    def worst(key: str) -> float:
        return float(max(run[key] for run in runs))

    lost, crossed, tokens = total("lost"), total("crossed"), worst("tokens_after_leaving")
    matrix = "`tests/faults/test_matrix.py`, `test_lives.py`, `test_laws.py`"
    return [
        Row(
            "requests lost",
            f"{lost} of {total('accepted'):,} accepted, {len(runs)} seeds",
            "0",
            lost == 0,
            matrix,
        ),
        Row("answers crossed", str(crossed), "0", crossed == 0, matrix),
        Row(
            "faults injected; servers that answered the next healthy request within 5 s",
            f"{total('faults'):,}; {total('survived')} of {total('cells')}",
            "all",
            total("survived") == total("cells"),
            matrix,
        ),
        Row(
            "slowest answer to the first healthy request after a fault",
            f"{worst('slowest_recovery_s'):.2f} s",
            "5 s",
            worst("slowest_recovery_s") < 5,
            matrix,
        ),
        Row(
            "tokens that a stream begins after its client has left",
            f"{tokens:.0f}, closed within {worst('slowest_stop_s') * 1000:.0f} ms",
            "2",
            tokens <= 2,
            "`tests/faults/test_stopping.py`",
        ),
        *rows_of_deaths(deaths),
    ]


def rows_of_inputs() -> list[Row]:
    """Send the corpus of bad inputs and what hypothesis and schemathesis make up."""
    tests = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/http/test_bad_*.py"))
    found = measured_by(*tests, "tests/http/test_connection.py")
    [run] = [figures for figures in found if figures["name"] == "bad inputs"]
    failed = run["status_5xx"] + run["crashes"]
    source = "`tests/http/test_bad_*.py`, `test_connection.py`"
    return [
        Row(
            "bad inputs tried; answered with 5xx; without an answer",
            f"{run['tried']:,}; {run['status_5xx']}; {run['crashes']}",
            "2,000; 0; 0",
            run["tried"] >= 2000 and failed == 0,
            source,
        ),
        Row(
            "largest answer to a bad input",
            f"{run['largest_answer_bytes']:,} bytes",
            "4,096",
            run["largest_answer_bytes"] <= 4096,
            source,
        ),
    ]


def rows_of_crowds() -> list[Row]:
    """Open many sockets, slow ones and silent ones, and send what has no end."""
    found = measured_by("tests/load")

    def of(name: str, key: str) -> float:
        return float(max(figures[key] for figures in found if figures["name"] == name))

    slow, idle = "`tests/load/test_slow_clients.py`", "`tests/load/test_crowds.py`"
    slowest, limit = of("slow clients", "slowest_s"), of("slow clients", "limit_s")
    before, meanwhile = of("good clients", "before_s"), of("good clients", "meanwhile_s")
    return [
        Row(
            f"{of('slow clients', 'n'):,.0f} clients that dribble or say nothing: the last is cut",
            f"after {slowest:.2f} s",
            f"{limit:g} s + 1.5 s",
            slowest < limit + 1.5,
            slow,
        ),
        Row(
            "good clients beside them, 99th percentile, before and meanwhile",
            f"{before * 1000:.1f} ms, {meanwhile * 1000:.1f} ms",
            "3 × the larger of before and 8 ms",
            meanwhile < 3 * max(before, 0.008),
            slow,
        ),
        _memory(
            "a stream of 10 MB that is read byte by byte", of("slow reader", "more_mb"), 20, slow
        ),
        _memory(f"{of('idle', 'n'):,.0f} idle connections", of("idle", "more_mb"), 200, idle),
        _memory(
            "heads, bodies, chunks and lines without end, up to 1 GB",
            of("bomb", "more_mb"),
            26,
            "`tests/load/test_bombs.py`",
        ),
        Row(
            "probes on new connections at fifty times the load, 99th percentile",
            f"{of('probes', 'slowest_s') * 1000:.1f} ms",
            "50 ms",
            of("probes", "slowest_s") < 0.05,
            "`tests/load/test_overload.py`",
        ),
    ]


def _memory(what: str, more_mb: float, limit_mb: float, source: str) -> Row:
    is_met = more_mb < limit_mb
    return Row(f"memory for {what}", f"{more_mb:+.1f} MB", f"{limit_mb:g} MB", is_met, source)


def rows_of_stops(n: int, seed: int) -> list[Row]:
    """Stop a server under full load, many times."""
    records = []
    codes: set[int] = set()
    for number in range(n):
        dice = random.Random(f"{seed} {number}")
        with serving() as served:
            mode = MODES[number % len(MODES)]
            records += asyncio.run(stop_under_load(served, mode, dice, dice.random() * 0.4))
            codes.add(served.process.wait(20))
    lost = sum(record.is_lost for record in records)
    others = {record.outcome for record in records} - {(200, None), (503, "draining")}
    return [
        Row(
            "requests lost by SIGTERM at full load",
            f"{lost} of {len(records):,} in {n} stops, exit codes {sorted(codes)}",
            "0 in 20",
            lost == 0 and not others and codes == {0},
            "`tests/faults/test_stopping.py`, `scripts/reliability`",
        )
    ]


def rows_of_overload() -> list[Row]:
    """Ask far more of a model than it can do."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overload.json"
        run("-m", "benchmarks.overload", "--json", str(path))
        report = json.loads(path.read_text(encoding="utf-8"))
    loads = report["loads"]
    shares = ", ".join(f"{n}×: {loads[n]['goodput_share']:.1%}" for n in loads)
    slowest = ", ".join(f"{n}×: {loads[n]['refused_p99_ms']:.1f} ms" for n in loads)
    source = "`python -m benchmarks.overload`"
    return [
        Row(
            "goodput within 250 ms under overload, as share of the peak",
            shares,
            "90 %",
            bool(report["is_met"]),
            source,
        ),
        Row(
            "refusals, 99th percentile",
            slowest,
            "20 ms to 5×, 50 ms at 10×",
            bool(report["is_met"]),
            source,
        ),
    ]


def rows_of_deaths(runs: list[Figures]) -> list[Row]:
    """Say what the deaths of processes have cost, in all the runs."""
    lost, crossed, accepted, deaths = (
        sum(run[key] for run in runs) for key in ("lost", "crossed", "accepted", "deaths")
    )
    beyond_s = max(run["beyond_load_max_s"] for run in runs)
    median_s = max(run["beyond_load_p50_s"] for run in runs)
    source = "`tests/faults/test_deaths.py`, `test_beginnings.py`"
    return [
        Row(
            "requests lost, answers crossed when processes of replicas die, hang or are stopped",
            f"{lost}, {crossed} of {accepted:,} accepted, {deaths} deaths",
            "0, 0",
            lost == crossed == 0,
            source,
        ),
        Row(
            "from a death to the next healthy answer, without the load of the next process",
            f"median {median_s:.2f} s, slowest {beyond_s:.2f} s",
            "1 s",
            beyond_s < 1,
            source,
        ),
    ]


def rows_of_soak(minutes: float, seed: int, kill_every_s: float = 0.0) -> list[Row]:
    """Keep a server under mixed load."""
    summary = soak(minutes, seed, 60.0, kill_every_s)
    problems = summary.problems()
    kills = f" {summary.kills} kills," if kill_every_s else ""
    what = f", and a replica's process killed every {kill_every_s:g} s" if kill_every_s else ""
    measured = (
        f"{summary.lost} of {summary.accepted:,} lost, {summary.crossed} crossed,"
        f" {summary.reloads} reloads,{kills} {summary.rss_slope_mb_per_min:+.2f} MB/min,"
        f" {summary.fds_growth:+g} descriptors"
    )
    return [
        Row(
            f"{minutes:g} minutes of faults, leaving clients and reloads{what}",
            measured,
            "0 lost, 1 MB/min, flat",
            not problems,
            f"`scripts/soak{' --kill-every 20' if kill_every_s else ''}`",
        )
    ]


def measured_by(*tests: str, **variables: str) -> list[Figures]:
    """Run tests and give what they noted; they have to pass."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures"
        run("-m", "pytest", "-q", *tests, **variables, **{VARIABLE: str(path)})
        lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def run(*arguments: str, **variables: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | variables, check=True)


def as_markdown(rows: list[Row]) -> str:
    """Write the table with what it was measured on."""
    cpu = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("mlserve", "fastapi", "starlette", "uvicorn")
    )
    day = datetime.now(UTC).date()
    machine = f"{os.cpu_count()} cores ({cpu}), Python {platform.python_version()}"
    lines = [
        f"\nMeasured on {day} with {packages} on {machine}.\n",
        "| figure | measured | target | how |",
        "|---|---|---|---|",
        *(f"| {r.figure} | {r.measured} | {r.target} | {r.source} |" for r in rows),
        "",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
