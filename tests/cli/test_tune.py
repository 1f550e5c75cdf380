"""`mlserve tune`: what batches cost, and how large they should be."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mlserve.cli import app
from mlserve.cli.tune import Measured, advise

MODULE = """
import time

from mlserve import ModelHandler, ModelServer


class Batched(ModelHandler[int, int]):
    def examples(self) -> list[int]:
        return [1, 2]

    def cost(self, item: int) -> int:
        return 10

    def infer(self, inputs: list[int]) -> list[int]:
        if len(inputs) > 8:
            raise MemoryError
        time.sleep(0.002 + 0.0001 * len(inputs))
        return inputs


class Remote(ModelHandler[int, int]):
    def examples(self) -> list[int]:
        return [1]

    async def infer(self, inputs: list[int]) -> list[int]:
        return inputs


class Mute(ModelHandler[int, int]):
    def infer(self, inputs: list[int]) -> list[int]:
        return inputs


server = ModelServer().add("batched", Batched).add("remote", Remote)
mute = ModelServer().add("mute", Mute)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "tuned_module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("tuned_module", None)


def tune(*arguments: str, expected: int = 0) -> str:
    result = CliRunner().invoke(app, ["tune", *arguments])
    assert result.exit_code == expected, result.output
    return result.output


def test_sizes_double_until_memory_runs_out_and_one_is_recommended(tmp_path: Path) -> None:
    figures, chart = tmp_path / "costs.json", tmp_path / "costs.svg"
    printed = tune(
        "tuned_module:server",
        *("--model", "batched", "--slo-ms", "1000", "--seconds", "0.02"),
        *("--json", str(figures), "--chart", str(chart)),
    )

    found = json.loads(figures.read_text("utf-8"))["batched/v1"]
    assert [entry["size"] for entry in found["measured"]] == [1, 2, 4, 8]
    assert found["advice"]["max_size"] == 8
    assert found["advice"]["max_cost"] == 80
    assert "Batching(max_size=8, max_cost=80)" in printed
    assert chart.read_text("utf-8").startswith("<svg")


def test_every_model_is_tuned_and_async_ones_too() -> None:
    printed = tune("tuned_module:server", "--seconds", "0.01", "--largest", "4")

    assert "batched v1" in printed
    assert "remote v1" in printed


def test_a_model_without_examples_is_refused_in_words() -> None:
    assert "examples" in tune("tuned_module:mute", expected=2)
    assert "no model" in tune("tuned_module:mute", "--model", "other", expected=2)


CURVES = st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=9)


@given(times=CURVES, slo_s=st.floats(1e-4, 1.0))
def test_what_is_recommended_keeps_the_objective_if_anything_does(
    times: list[float], slo_s: float
) -> None:
    measured = [Measured(2**i, 2**i, seconds, 3) for i, seconds in enumerate(sorted(times))]

    found = advise(measured, slo_s, has_costs=False)

    assert found.is_within == any(2 * entry.mean_s <= slo_s for entry in measured)
    assert found.max_size in {entry.size for entry in measured}
    if found.is_within:
        assert found.latency_s <= slo_s
        allowed = [entry.per_s for entry in measured if 2 * entry.mean_s <= slo_s]
        assert found.per_s >= 0.95 * max(allowed)
    else:
        assert found.max_size == 1
