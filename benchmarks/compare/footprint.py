"""What an idle server holds, and how long imports and starts take."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.compare.servers import ROOT, started
from benchmarks.compare.systems import SYSTEMS
from benchmarks.compare.workloads import WORKLOADS

__all__ = ["Footprint", "taken"]

_IMPORT = "import time; t = time.perf_counter(); import mlserve; print(time.perf_counter() - t)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What mlserve takes before it does anything."""

    import_s: list[float]
    ready_s: list[float]
    """From the start of `mlserve run` to the first answer of a trivial model, in seconds."""
    idle_mb: float
    """The memory of a server without a model, in MB."""


def taken(n: int) -> Footprint:
    """Measure it, times several times over."""
    import_s = [
        float(
            subprocess.run(
                [sys.executable, "-c", _IMPORT], cwd=ROOT, capture_output=True, check=True
            ).stdout
        )
        for _ in range(n)
    ]
    ours, noop, python = SYSTEMS["mlserve"], WORKLOADS["noop"], Path(sys.executable)
    ready_s = []
    for _ in range(n):
        with started(ours, noop, python) as running:
            ready_s.append(running.ready_s)
    empty = replace(noop, name="empty")
    bare = replace(ours, paths={"empty": "/health"})
    with started(bare, empty, python) as running:
        idle_mb = running.rss_mb()
    return Footprint(import_s=import_s, ready_s=ready_s, idle_mb=idle_mb)
