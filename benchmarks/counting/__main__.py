"""
What a request costs: instructions of the interpreter, calls, garbage and memory, not times.

A model that does nothing is served as `mlserve run` serves it, with access log, metrics, request
ids, deadlines and the watch for clients that leave; beside it stands the same endpoint written by
hand in FastAPI. Counts hardly change from run to run, however busy the machine is, so that tests
can bound them (`--quick` prints what they may be). They do change with the versions of Python and
of other packages. What is written in C (the parser of HTTP, the event loop, the JSON) is not
counted, so that a count is no time.

    python -m benchmarks.counting [--quick] [--repeat 5] [--json FILE]
"""

import argparse
import json
import sys
from typing import Any

from benchmarks.counting.measure import CASES, Cost, Waiting, cost_of, waiting_of
from benchmarks.counting.report import cost_table, module_table, spread_table, waiting_table

N_WAITING = {True: 250, False: 1000}
"""How many requests wait; fewer where it has to be quick."""
BOUNDED = (
    "mlserve, alone",
    "mlserve, 32 at once",
    "mlserve with keys, 32 at once",
    "mlserve, refused",
    "mlserve async, alone",
    "mlserve, an event",
)
"""What the tests bound."""


def main(arguments: list[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only what the tests bound")
    parser.add_argument("--repeat", type=int, default=1, help="count several times, and compare")
    parser.add_argument("--json", metavar="FILE", help="write the counts there; `-` = only print")
    options = parser.parse_args(arguments)

    names = BOUNDED if options.quick else tuple(CASES)
    runs = [{name: cost_of(CASES[name]) for name in names} for _ in range(options.repeat)]
    systems = ("mlserve",) if options.quick else ("mlserve", "FastAPI")
    waiting = {name: waiting_of(name, N_WAITING[options.quick]) for name in systems}
    if options.json is not None:
        _write(options.json, runs[-1], waiting)
    if options.json != "-":
        _print(runs, waiting, is_quick=options.quick)


def _write(place: str, costs: dict[str, Cost], waiting: dict[str, Waiting]) -> None:
    results: dict[str, Any] = {
        "python": _python(),
        "costs": {
            name: {**cost._asdict(), "total": cost.total, "own": cost.own}
            for name, cost in costs.items()
        },
        "waiting": {name: sizes._asdict() for name, sizes in waiting.items()},
    }
    text = json.dumps(results, indent=1)
    if place == "-":
        print(text)
        return
    with open(place, "w", encoding="utf-8") as file:
        file.write(text)


def _print(runs: list[dict[str, Cost]], waiting: dict[str, Waiting], *, is_quick: bool) -> None:
    if len(runs) > 1:
        print(spread_table(runs), end="\n\n")
    if is_quick:
        ceilings = {name: round(cost.total) for name, cost in runs[-1].items()}
        print(f'"{_python()}": {json.dumps(ceilings, indent=4)},')
        return
    print(cost_table(runs[-1]), module_table(runs[-1]), waiting_table(waiting), sep="\n\n")


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


if __name__ == "__main__":
    main()
