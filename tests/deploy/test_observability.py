"""What `deploy/` asks Prometheus for is what `/metrics` shows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # the package carries none
from prometheus_client import Histogram
from tests.docs.pages import ROOT

from mlserve import errors
from mlserve.http import errors as http_errors
from mlserve.observability.metrics import FAMILIES

GRAFANA = ROOT / "deploy" / "grafana" / "mlserve.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"
NAME = re.compile(r"mlserve_[a-z_]+")
MATCHER = re.compile(r'(\w+)=~?"([^"]*)"')
BY = re.compile(r"by \(([^)]*)\)")


def samples() -> dict[str, set[str]]:
    """Give the labels of every sample, by its name."""
    found = {}
    for family in FAMILIES:
        [described] = family.describe()
        labels = set(family._labelnames)
        if described.type == "counter":
            found[f"{described.name}_total"] = labels
        elif isinstance(family, Histogram):
            found |= dict.fromkeys((f"{described.name}_sum", f"{described.name}_count"), labels)
            found[f"{described.name}_bucket"] = labels | {"le"}
        else:
            found[described.name] = labels
    return found


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_of(item)


def dashboard() -> list[str]:
    board = json.loads(GRAFANA.read_text(encoding="utf-8"))
    return [text for text in strings_of(board) if NAME.search(text)]


def rules() -> list[dict[str, Any]]:
    text = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


EXPRESSIONS = [*dashboard(), *(rule["expr"] for rule in rules())]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_name_and_label_of_an_expression_is_one_of_a_sample(expression: str) -> None:
    known, names = samples(), NAME.findall(expression)
    labels = {"instance", *(label for name in names for label in known.get(name, ()))}
    asked = {label for label, _ in MATCHER.findall(expression)}
    asked |= {label.strip() for group in BY.findall(expression) for label in group.split(",")}

    assert names
    assert set(names) <= known.keys()
    assert asked <= labels
    assert expression.count("(") == expression.count(")")


def test_the_dashboard_shows_every_family() -> None:
    shown = set(NAME.findall(" ".join(dashboard())))

    missing = [
        metric.name
        for family in FAMILIES
        for metric in family.describe()
        if not any(name.startswith(metric.name) for name in shown)
    ]

    assert missing == []


def test_every_panel_has_its_place_and_its_number() -> None:
    panels = json.loads(GRAFANA.read_text(encoding="utf-8"))["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


def test_alerts_ask_for_codes_that_there_are() -> None:
    codes = {getattr(errors, name).code for name in errors.__all__}
    codes |= {*http_errors._CODES.values(), "internal_error"}
    asked = [
        code
        for rule in rules()
        for label, values in MATCHER.findall(rule["expr"])
        if label in ("code", "reason")
        for code in values.split("|")
    ]

    assert asked
    assert set(asked) <= codes


def test_prometheus_scrapes_our_path_and_reads_our_rules() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))

    [job] = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert [Path(PROMETHEUS, name).exists() for name in config["rule_files"]] == [True]
