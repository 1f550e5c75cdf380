"""
mlserve beside other servers, on this machine: the same models, the same loads, in turns.

Each peer has a virtual environment of its own, made from PyPI the first time and kept. Servers run
on the first core, the load on the last one. What cannot be installed or started is left out, and
the report says why.

    python -m benchmarks list
    python -m benchmarks run --quick
    python -m benchmarks run --page

The other benchmarks in this folder are commands of their own, such as
`python -m benchmarks.overload`.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.compare.bars import evaluated
from benchmarks.compare.environments import versions_of
from benchmarks.compare.footprint import Footprint, taken
from benchmarks.compare.machine import Machine, seen
from benchmarks.compare.report import charts, page_parts, whole
from benchmarks.compare.results import Results
from benchmarks.compare.run import Options, pythons_of, run
from benchmarks.compare.systems import SYSTEMS, named
from benchmarks.compare.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "performance.md"
CACHE = Path.home() / ".cache" / "mlserve-benchmarks"
QUICK_SHARE = 0.3


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    if options.command == "list":
        print(_listed())
        return 0
    try:
        systems = named(options.systems.split(","))
        workloads = [WORKLOADS[name] for name in _workload_names(options)]
    except (ValueError, KeyError) as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 2
    plan = Options(
        systems=tuple(systems),
        workloads=tuple(workloads),
        n_rounds=1 if options.quick else options.rounds,
        share=options.share or (QUICK_SHARE if options.quick else 1.0),
        cache=options.cache,
        is_quick=options.quick,
    )
    started_at = time.monotonic()
    machine = seen(f"python -m benchmarks {' '.join(given)}")
    results = run(plan)
    ours = any(system.name == "mlserve" for system in systems)
    footprint = taken(3 if options.quick else 5) if ours else None
    names = tuple(sorted({"mlserve", *(p for s in systems for p in s.packages)}))
    versions = {where: versions_of(python, names) for where, python in pythons_of(plan).items()}
    machine = replace(machine, versions=versions)
    found = evaluated(results, footprint)
    report = whole(results, machine, found)
    _write(options.out, results, machine, footprint, report)
    if options.page:
        rewrite(PAGE, page_parts(results, machine, found), charts(results))
    print(report)
    print(
        f"{time.monotonic() - started_at:.0f} s; results.json, results.md and charts: {options.out}"
    )
    return 0


def rewrite(page: Path, parts: dict[str, str], pictures: dict[str, str]) -> None:
    """Put what was measured between the markers of a page, and the pictures beside it."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        if found:
            text = f"{before}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")
    for name, picture in pictures.items():
        page.with_name(f"performance-{name}.svg").write_text(picture, encoding="utf-8")


def _write(
    folder: Path, results: Results, machine: Machine, footprint: Footprint | None, report: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole_json = {
        "machine": machine.as_json(),
        "footprint": footprint and footprint.as_json(),
        **results.as_json(),
    }
    (folder / "results.json").write_text(json.dumps(whole_json, indent=1), encoding="utf-8")
    (folder / "results.md").write_text(report, encoding="utf-8")
    for name, picture in charts(results).items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


def _workload_names(options: argparse.Namespace) -> list[str]:
    if options.workloads:
        return str(options.workloads).split(",")
    return [name for name, what in WORKLOADS.items() if what.is_quick or not options.quick]


def _listed() -> str:
    lines = ["workloads:"]
    lines += [
        f"  {w.name:16} {w.title}: {', '.join(c.name for c in w.cells)}" for w in WORKLOADS.values()
    ]
    lines.append("systems:")
    lines += [f"  {s.name:16} {s.title}: {', '.join(s.paths)}" for s in SYSTEMS.values()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="say what can be measured")
    run_ = commands.add_parser("run", help="measure")
    run_.add_argument("--systems", default=",".join(SYSTEMS), help="separated by commas")
    run_.add_argument("--workloads", help="separated by commas; all without --quick")
    run_.add_argument("--rounds", type=int, default=3)
    run_.add_argument("--share", type=float, help="of each load's seconds")
    run_.add_argument("--quick", action="store_true", help="one short round, under 3 minutes")
    run_.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    run_.add_argument("--cache", type=Path, default=CACHE, help="where the peers are installed")
    run_.add_argument("--page", action="store_true", help=f"write it into {PAGE.name}, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
