"""
What a request costs may not grow unnoticed: bytecode instructions, garbage and memory, not times.

Counts are the same on a busy machine, so that they can be bounded here. They change with Python
and with other packages, too. After a change that is worth it, renew the ceilings of this Python by
what `python -m benchmarks.counting --quick` prints.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.counting.tally import Tally

CEILINGS = {
    "3.11": {
        "mlserve, alone": 3854,
        "mlserve, 32 at once": 2297,
        "mlserve with keys, 32 at once": 2510,
        "mlserve, refused": 1159,
        "mlserve async, alone": 3795,
        "mlserve, an event": 388,
    },
}
"""Instructions of a request or an event, by the version of Python."""

ALLOWANCE = 1.03
WAITING_BYTES = 2048
"""What mlserve's own objects may take for each request in the queue."""

ROOT = Path(__file__).parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@functools.cache
def counted() -> Any:
    """Count in a process of its own: here, the measurement of coverage would be counted as well."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    command = [sys.executable, "-m", "benchmarks.counting", "--quick", "--json", "-"]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("what", CEILINGS["3.11"])
def test_a_request_takes_no_more_instructions_than_recorded(what: str) -> None:
    if PYTHON not in CEILINGS:
        pytest.skip(f"Nothing is recorded for Python {PYTHON}.")

    instructions = counted()["costs"][what]["total"]

    assert instructions <= CEILINGS[PYTHON][what] * ALLOWANCE


@pytest.mark.slow
@pytest.mark.parametrize("what", CEILINGS["3.11"])
def test_a_request_leaves_nothing_behind(what: str) -> None:
    cost = counted()["costs"][what]

    assert cost["garbage"] == 0
    assert cost["kept_blocks"] < 0.5


@pytest.mark.slow
def test_a_request_that_waits_takes_little_memory() -> None:
    assert counted()["waiting"]["mlserve"]["own_bytes"] <= WAITING_BYTES


def test_the_same_work_counts_the_same_and_twice_the_work_twice() -> None:
    once, again, twice = tallied(lambda: work(10)), tallied(lambda: work(10)), tallied(two_works)

    assert once == again
    assert twice - tallied(lambda: None) == pytest.approx(2 * once, rel=0.1)


def test_who_traces_the_thread_goes_on_when_the_count_ends() -> None:
    before = sys.gettrace()

    with pytest.raises(ZeroDivisionError), Tally().counting():
        raise ZeroDivisionError

    assert sys.gettrace() is before


def tallied(do: Callable[[], object]) -> int:
    """Count the instructions that belong to this module."""
    tally = Tally()
    with tally.counting():
        do()
    return tally.counts().instructions[__name__]


def work(n: int) -> int:
    return sum(i * i for i in range(n))


def two_works() -> None:
    work(10)
    work(10)
