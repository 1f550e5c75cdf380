"""Rules that hold for the source as a whole and that no linter knows."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlserve

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "mlserve"
MAX_LINES = 400

IMPORT_AND_REPORT = """
import json, sys, threading
import mlserve
heavy = sorted({"torch", "transformers"} & sys.modules.keys())
threads = [thread.name for thread in threading.enumerate()]
print(json.dumps({"heavy": heavy, "threads": threads}))
"""


def modules() -> list[Path]:
    found = sorted(SOURCE.rglob("*.py"))
    assert found, f"There is no module in {SOURCE}."
    return found


def name_of(module: Path) -> str:
    return module.relative_to(SOURCE).as_posix()


def tree_of(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), str(module))


def names_in(tree: ast.Module) -> Iterator[str]:
    """All names that the code uses or imports; words in strings and comments are free."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name.rpartition(".")[2]


def imports_of(tree: ast.Module) -> set[str]:
    """All modules that the code imports, wherever it does."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return found


def has_postponed_annotations(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in ast.walk(tree)
    )


def test_no_module_is_longer_than_400_lines() -> None:
    lines = {name_of(m): len(m.read_text(encoding="utf-8").splitlines()) for m in modules()}

    too_long = {name: n for name, n in lines.items() if n > MAX_LINES}

    assert too_long == {}


def test_every_module_begins_with_a_docstring() -> None:
    undocumented = [name_of(m) for m in modules() if not ast.get_docstring(tree_of(m))]

    assert undocumented == []


def test_no_module_uses_a_middleware_that_can_end_a_broken_stream_as_if_it_were_whole() -> None:
    users = [name_of(m) for m in modules() if "BaseHTTPMiddleware" in names_in(tree_of(m))]

    assert users in ([], ["http/foreign.py"])  # which looks for it in applications and warns


def test_only_what_runs_replicas_in_processes_unpickles_anything() -> None:
    """What comes from a client is parsed and validated, never unpickled."""
    dangerous = {"pickle", "Unpickler", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    users = [name_of(m) for m in modules() if dangerous & set(names_in(tree_of(m)))]

    assert [name for name in users if not name.startswith("processes/")] == []


def test_only_integrations_import_what_an_extra_brings() -> None:
    optional = re.compile(r"(redis|sqlalchemy|alembic|mcp|ray|opentelemetry\.(sdk|exporter))(\.|$)")

    found = {
        name_of(module): sorted(filter(optional.match, imports_of(tree_of(module))))
        for module in modules()
        if not name_of(module).startswith("integrations/")
    }

    assert {name: imports for name, imports in found.items() if imports} == {}


def test_no_module_postpones_its_annotations() -> None:
    users = [name_of(m) for m in modules() if has_postponed_annotations(tree_of(m))]

    assert users == []


@pytest.mark.slow
def test_importing_the_package_loads_no_ml_framework_and_starts_no_thread() -> None:
    report = json.loads(
        subprocess.run(
            [sys.executable, "-c", IMPORT_AND_REPORT],
            check=True,
            stdout=subprocess.PIPE,
            timeout=15,
        ).stdout
    )

    assert report == {"heavy": [], "threads": ["MainThread"]}


def test_the_public_names_are_sorted_and_listed_once() -> None:
    names = list(mlserve.__all__)

    assert names == sorted(set(names))


def test_every_public_name_exists() -> None:
    missing = [name for name in mlserve.__all__ if not hasattr(mlserve, name)]

    assert missing == []


def test_the_changelog_has_a_section_for_this_version_or_for_what_comes() -> None:
    headings = [
        line
        for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("## ")
    ]

    assert any(f"[{mlserve.__version__}]" in line or "[Unreleased]" in line for line in headings)
