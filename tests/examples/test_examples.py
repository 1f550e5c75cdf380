"""Each example runs as a newcomer would run it, and stays short enough to be read at once."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
IDS = [path.stem for path in EXAMPLES]
MAX_LINES = 79


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_the_example_checks_itself(path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLSERVE_")}

    done = subprocess.run(
        [sys.executable, path.name, "--check"],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not re.search(r"Traceback|Exception in|Warning:|never awaited", done.stderr), done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_the_example_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""

    assert len(text.splitlines()) <= MAX_LINES
    assert f"mlserve run {path.stem}:" in docstring or f"python {path.name}" in docstring
    assert docstring.splitlines()[0].endswith(".")


def test_the_examples_are_numbered_without_a_gap() -> None:
    numbers = [int(path.name.partition("_")[0]) for path in EXAMPLES]

    assert numbers == list(range(1, len(EXAMPLES) + 1))
