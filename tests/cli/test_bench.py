"""`mlserve bench` against a real server."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.processes import serving
from typer.testing import CliRunner

from mlserve.cli import app

MODULE = """
from collections.abc import Iterator

from mlserve import InvalidInputError, ModelHandler, ModelServer


class Echo(ModelHandler[str, str, str]):
    def preprocess(self, request: str) -> str:
        if request == "bad":
            raise InvalidInputError("It is bad.")
        return request

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs

    def stream(self, item: str) -> Iterator[str]:
        yield from item


server = ModelServer().add("echo", Echo)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "served.py").write_text(MODULE, encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with serving("served:server", PYTHONPATH=path) as served:
        yield f"http://127.0.0.1:{served.port}/v1/models/echo"


def bench(*arguments: str, expected: int = 0) -> str:
    result = CliRunner().invoke(app, ["bench", "--warm-up", "0", *arguments])
    assert result.exit_code == expected, result.output
    return result.output


def figures(base: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "figures.json"
    bench(base, "--seconds", "0.5", "--json", str(path), *arguments)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_clients_that_ask_again_at_once_are_all_answered(base: str, tmp_path: Path) -> None:
    found = figures(f"{base}/predict", tmp_path, "--body", '"a"', "--clients", "4")

    assert set(found["statuses"]) == {"200"}
    assert found["n_sent"] > 20
    assert 0 < found["latency"]["p50"] <= found["latency"]["most"]


def test_requests_at_random_times_come_about_as_often_as_asked(base: str, tmp_path: Path) -> None:
    found = figures(
        f"{base}/predict", tmp_path, "--body", '"a"', "--rate", "200", "--slo-ms", "5e3"
    )

    assert 50 <= found["n_sent"] <= 160
    assert found["goodput_per_s"] == found["per_s"]


def test_a_stream_is_measured_by_its_chunks(base: str, tmp_path: Path) -> None:
    found = figures(f"{base}/stream", tmp_path, "--body", '"abc"', "--clients", "2")

    assert found["chunks_per_s"] == pytest.approx(3 * found["per_s"])
    assert found["first_chunk"]["p50"] <= found["latency"]["p99"]


def test_what_is_refused_is_counted_by_status(base: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--body", '"bad"', "--clients", "2", "--json", str(path)]
    bench(f"{base}/predict", "--seconds", "0.3", *arguments, expected=1)

    assert set(json.loads(path.read_text("utf-8"))["statuses"]) == {"422"}


def test_a_chart_and_a_table_are_drawn(base: str, tmp_path: Path) -> None:
    chart, body = tmp_path / "chart.svg", tmp_path / "body.json"
    body.write_text('"a"', encoding="utf-8")
    printed = bench(
        f"{base}/predict", "--body", f"@{body}", "--seconds", "0.3", "--chart", str(chart)
    )

    assert chart.read_text("utf-8").startswith("<svg")
    assert "p99.9" in printed
    assert "answers/s" in printed


def test_a_server_that_is_not_there_is_counted_as_lost() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        printed = bench(f"http://127.0.0.1:{port}/", "--seconds", "0.3", expected=1)

    assert "lost" in printed


@pytest.mark.parametrize(
    "arguments",
    [("ftp://example",), ("http://127.0.0.1/", "--header", "x"), ("http://h/", "--body", "@none")],
)
def test_what_cannot_be_asked_is_said_in_words(arguments: tuple[str, ...]) -> None:
    printed = bench(*arguments, expected=2)

    assert "Traceback" not in printed
