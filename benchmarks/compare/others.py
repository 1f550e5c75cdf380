"""The benchmarks that are commands of their own: run one after the other, and read."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.compare.servers import ROOT, all_cores

__all__ = ["COMMANDS", "Others", "run_others"]

COMMANDS = {
    "pairs": ("--rounds", "20"),
    "overload": ("--seconds", "4", "--rounds", "3"),
    "encoders": ("--seconds", "4", "--rounds", "8"),
    "placement": ("--rounds", "12"),
    "lone_request": (),
}
"""What of each is measured within about two minutes."""

Others = Mapping[str, Mapping[str, Any]]
"""What each of them has found, by its name; nothing of those that were not run."""


def run_others() -> Others:
    """Run them all; one that fails is left out, and says why itself."""
    os.sched_setaffinity(0, all_cores())  # each looks for cores of its own
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for module, options in COMMANDS.items():
            print(f"benchmarks.{module} {' '.join(options)}", flush=True)
            path = Path(folder) / f"{module}.json"
            command = [sys.executable, "-m", f"benchmarks.{module}", *options, "--json", str(path)]
            subprocess.run(command, cwd=ROOT, check=False)  # it also fails when a goal is missed
            if path.exists():
                found[module] = json.loads(path.read_text(encoding="utf-8"))
    return found
