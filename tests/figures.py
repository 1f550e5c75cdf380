"""Figures that tests have measured, for `scripts/reliability`: each a line of JSON."""

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "TEST_FIGURES"
"""Names the file; without it nothing is written."""


def note(name: str, **figures: Any) -> None:
    """Write down what a test has measured, under the name of what it is about."""
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name} | figures) + "\n")
