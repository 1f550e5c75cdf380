"""README promises what there is."""

import re
from itertools import takewhile

import pytest
from tests.docs.pages import ROOT, blocks_of

README = ROOT / "README.md"
# What a reader may look for in a library of this kind and will not find in this version.
NOT_THERE = (
    "auth",
    "cache",
    "canary",
    "deprecat",
    "generation engine",
    "grpc",
    "kserve",
    "mcp",
    "open inference",
    "process placement",
    "records",
    "shadow",
    "sink",
    "triton",
)


def feature_table() -> list[str]:
    lines = iter(README.read_text(encoding="utf-8").splitlines())
    heading = "## What you get"
    assert heading in lines  # moves on to the line behind it
    return [line for line in takewhile(lambda x: not x.startswith("#"), lines) if line[:1] == "|"]


@pytest.mark.parametrize("words", NOT_THERE)
def test_the_feature_table_does_not_promise_what_there_is_not(words: str) -> None:
    table = "\n".join(feature_table()).lower()

    assert words not in table


def test_every_feature_links_to_a_page() -> None:
    without = [row for row in feature_table()[2:] if not re.search(r"\]\(docs/[\w/-]+\.md", row)]

    assert len(feature_table()) > 10
    assert without == []


def test_the_first_server_has_at_most_twenty_lines_of_code() -> None:
    first = blocks_of(README)[0]

    code = [line for line in first.text.splitlines() if line and not line.startswith("#")]

    assert len(code) <= 20


def test_every_example_is_listed() -> None:
    text = README.read_text(encoding="utf-8")

    missing = [p.name for p in (ROOT / "examples").glob("*.py") if f"examples/{p.name}" not in text]

    assert missing == []
