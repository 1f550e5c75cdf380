"""The page on reliability names tests that exist, and figures that were measured."""

import re

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "reliability.md"
TEST = re.compile(r"^\| [\d–, ]+ \| (.+) \| `([\w/]+\.py)::(\w+)` \|$", re.MULTILINE)


def test_every_promise_has_a_test() -> None:
    promises = TEST.findall(PAGE.read_text(encoding="utf-8"))

    missing = [
        f"{file}::{name}"
        for _, file, name in promises
        if not (ROOT / "tests" / file).exists()
        or f"def {name}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert missing == []
    assert len(promises) > 30


def test_the_figures_were_measured() -> None:
    page = PAGE.read_text(encoding="utf-8")
    figures = page.partition("<!-- figures -->\n")[2].partition("<!-- end of figures -->")[0]

    assert "Measured on " in figures
    assert figures.count("\n| ") > 10
