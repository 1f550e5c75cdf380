"""The reference says what the code says."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest
import typer
from tests.docs.pages import ROOT, name_of
from tests.docs.tables import REFERENCE, access_log_keys, tables, with_tables

import mlserve
from mlserve import cli
from mlserve.observability.metrics import FAMILIES
from mlserve.records import __all__ as records_names
from mlserve.testing import __all__ as testing_names


@pytest.mark.parametrize("page", list(tables()), ids=name_of)
def test_the_tables_of_a_page_are_those_of_the_code(page: Path) -> None:
    wanted = with_tables(page, tables()[page])

    assert page.read_text(encoding="utf-8") == wanted, "Run `python -m tests.docs.tables`."


def test_the_handler_page_lists_every_hook_in_its_order() -> None:
    page = (REFERENCE / "handler.md").read_text(encoding="utf-8")
    hooks = [name for name, _ in inspect.getmembers(mlserve.SteppedHandler, inspect.isfunction)]
    public = {name for name in hooks if not name.startswith("_")}

    listed = re.findall(r"^\| `(\w+)\(self", page, re.MULTILINE)

    assert set(listed) == public
    assert len(listed) == len(public)


def test_the_server_page_lists_every_method_of_the_server() -> None:
    page = (REFERENCE / "server.md").read_text(encoding="utf-8")
    methods = inspect.getmembers(mlserve.ModelServer, inspect.isfunction)

    missing = [n for n, _ in methods if not n.startswith("_") and f"`server.{n}(" not in page]

    assert missing == []


def test_the_server_page_lists_every_keyword_of_the_server_and_of_add() -> None:
    page = (REFERENCE / "server.md").read_text(encoding="utf-8")
    keywords = {
        name
        for function in (mlserve.ModelServer, mlserve.ModelServer.add, mlserve.ModelServer.run)
        for name in inspect.signature(function).parameters
        if name != "self"
    }

    missing = [name for name in sorted(keywords) if f"| `{name}` |" not in page]

    assert missing == []


def test_the_api_page_names_every_public_name_once() -> None:
    page = (REFERENCE / "api.md").read_text(encoding="utf-8")

    listed = re.findall(r"^::: mlserve\.([\w.]+)$", page, re.MULTILINE)

    # To what builds the page, `mlserve.handler` is the module of that name and not the function.
    names = ["functions.handler" if name == "handler" else name for name in mlserve.__all__]
    names += [f"testing.{name}" for name in testing_names]
    names += [f"records.{name}" for name in records_names]
    assert sorted(listed) == sorted([*names, "integrations.sql.SqlSink"])


def test_the_access_log_page_lists_every_key_in_its_order() -> None:
    page = (REFERENCE / "access-log.md").read_text(encoding="utf-8")

    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)

    assert listed == access_log_keys()


def test_the_cli_page_lists_every_command_and_option() -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    group = typer.main.get_command(cli.app)
    commands = getattr(group, "commands", {})
    options = [
        f"`{parameter.opts[0]}`"
        for command in commands.values()
        for parameter in command.params
        if parameter.opts[0].startswith("--")
    ]

    missing = [
        name
        for name in [*(f"## `mlserve {name}" for name in commands), *options]
        if name not in page
    ]

    assert commands
    assert missing == []


def test_the_metrics_page_explains_every_label() -> None:
    page = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    labels = {label for family in FAMILIES for label in family._labelnames}

    explained = re.findall(r"^\| `(\w+)` \|", page.partition("## Labels")[2], re.MULTILINE)

    assert sorted(explained) == sorted(labels)


def test_the_architecture_page_has_the_layers_that_the_checks_enforce() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    wanted = [re.findall(r"\w+", layer) for layer in contract["layers"]]

    section = page.partition("## Layers")[2].partition("\n## ")[0]

    rows = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)

    assert [re.findall(r"`(\w+)`", row) for row in rows] == wanted
