"""
mlserve beside other servers, on this machine: the same models, the same loads, in turns.

Each peer has a virtual environment of its own, made from PyPI the first time and kept. Servers run
on the first core, the load on the last one. What cannot be installed or started is left out, and
the report says why.

    python -m benchmarks list
    python -m benchmarks run --quick
    python -m benchmarks run --others --page

The other benchmarks in this folder are commands of their own, such as
`python -m benchmarks.overload`; with `--others` those that the goals need are run as well.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.compare.bars import Bar, evaluated
from benchmarks.compare.environments import versions_of
from benchmarks.compare.footprint import Footprint, taken
from benchmarks.compare.machine import Machine, seen
from benchmarks.compare.others import Others, run_others
from benchmarks.compare.report import charts, page_parts, whole
from benchmarks.compare.results import Results
from benchmarks.compare.run import Options, pythons_of, run
from benchmarks.compare.systems import SYSTEMS, named
from benchmarks.compare.workloads import WORKLOADS, Workload

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
    started_at = time.monotonic()
    try:
        if options.command == "report":
            text = Path(options.file).read_text(encoding="utf-8")
            record = Record.from_json(json.loads(text))
        else:
            record = _measured(options, f"python -m benchmarks {' '.join(given)}")
            record.write(options.out)
            print(f"{time.monotonic() - started_at:.0f} s; results and charts: {options.out}")
    except (ValueError, OSError) as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 2
    print(record.report())
    if options.page:
        rewrite(PAGE, record)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that a run has found."""

    results: Results
    machine: Machine
    footprint: Footprint | None
    others: Others = field(default_factory=dict)
    """What the benchmarks have found that are commands of their own."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        """Read what `write` has written."""
        footprint = values["footprint"]
        return cls(
            results=Results.from_json(values),
            machine=Machine(**values["machine"]),
            footprint=None if footprint is None else Footprint(**footprint),
            others=values.get("others", {}),
        )

    @property
    def bars(self) -> list[Bar]:
        """The goals, and what was measured of them."""
        return evaluated(self.results, self.footprint, self.others)

    def report(self) -> str:
        """Give it as Markdown."""
        return whole(self.results, self.machine, self.bars)

    def write(self, folder: Path) -> None:
        """Write figures, report and charts into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "machine": asdict(self.machine),
            "footprint": None if self.footprint is None else asdict(self.footprint),
            "others": self.others,
            **self.results.as_json(),
        }
        (folder / "results.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        (folder / "results.md").write_text(self.report(), encoding="utf-8")
        for name, picture in charts(self.results).items():
            (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


def rewrite(page: Path, record: Record) -> None:
    """Put what was measured between the markers of a page, and the charts beside it."""
    text = page.read_text(encoding="utf-8")
    for name, part in page_parts(record.results, record.machine, record.bars).items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        if found:
            text = f"{before}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")
    for name, picture in charts(record.results).items():
        page.with_name(f"performance-{name}.svg").write_text(picture, encoding="utf-8")


def _measured(options: argparse.Namespace, command: str) -> Record:
    plan = Options(
        systems=tuple(named(options.systems.split(","))),
        workloads=tuple(_workloads(options)),
        n_rounds=1 if options.quick else options.rounds,
        share=options.share or (QUICK_SHARE if options.quick else 1.0),
        cache=options.cache,
        is_quick=options.quick,
    )
    machine = seen(command)
    results = run(plan)
    with_ours = any(system.name == "mlserve" for system in plan.systems)
    footprint = taken(3 if options.quick else 5) if with_ours else None
    names = tuple(sorted({"mlserve", *(p for s in plan.systems for p in s.packages)}))
    versions = {where: versions_of(python, names) for where, python in pythons_of(plan).items()}
    return Record(
        results=results,
        machine=replace(machine, versions=versions),
        footprint=footprint,
        others=run_others() if options.others else {},
    )


def _workloads(options: argparse.Namespace) -> list[Workload]:
    if not options.workloads:
        return [what for what in WORKLOADS.values() if what.is_quick or not options.quick]
    names = str(options.workloads).split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise ValueError(f"Unknown workloads: {', '.join(unknown)}. Known: {', '.join(WORKLOADS)}.")
    return [WORKLOADS[name] for name in names]


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
    run_.add_argument("--others", action="store_true", help="run the other benchmarks, too")
    run_.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    run_.add_argument("--cache", type=Path, default=CACHE, help="where the peers are installed")
    report = commands.add_parser("report", help="say again what a run has found")
    report.add_argument("file", help="its results.json")
    for command in (run_, report):
        command.add_argument("--page", action="store_true", help=f"write it into {PAGE.name}, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
