"""The commands in this process: what they print and with which code they end."""

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.projects import write_project
from typer.testing import CliRunner, Result

import mlserve
import mlserve.cli
from mlserve import ModelHandler, ModelServer, ServerSettings
from mlserve.cli.check import check_server
from mlserve.testing import EchoHandler


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(write_project(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "160")
    yield
    for name in ("reviews", "broken", "app", "bare"):
        sys.modules.pop(name, None)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(mlserve.cli.app, arguments)


def test_the_version_is_printed() -> None:
    result = invoke("version")

    assert (result.exit_code, result.output) == (0, f"{mlserve.__version__}\n")


def test_a_server_that_works_passes() -> None:
    result = invoke("check", "reviews:server")

    assert result.exit_code == 0
    assert "shout" in result.output
    assert "ok" in result.output


@pytest.mark.parametrize(
    ("failure", "message"), [("example", "ModelError"), ("load", "OSError: There are no weights.")]
)
def test_what_fails_ends_the_check_with_1(
    monkeypatch: pytest.MonkeyPatch, failure: str, message: str
) -> None:
    monkeypatch.setenv("FAIL", failure)

    result = invoke("check", "reviews:server")

    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("reviews", "as reviews:server"),
        ("nothing:server", "no module 'nothing'"),
        ("broken:server", "no_such_package_4711"),
        ("reviews:sever", "no attribute 'sever'"),
        ("reviews:text", "must be a ModelServer or a FastAPI app"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_wrong_target_is_told(command: str, target: str, message: str) -> None:
    result = invoke(command, target)

    assert result.exit_code == 2
    assert message in result.output


def test_settings_of_the_environment_that_are_wrong_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLSERVE_DRAIN_S", "-1")

    result = invoke("check", "reviews:server")

    assert result.exit_code == 2
    assert "drain_s" in result.output


def test_an_application_cannot_be_checked() -> None:
    result = invoke("check", "app:app")

    assert result.exit_code == 2
    assert "needs a ModelServer" in result.output


@pytest.mark.parametrize("option", [("--port", "70000"), ("--log-level", "loud"), ("--hots", "x")])
def test_a_wrong_option_is_refused(option: tuple[str, str]) -> None:
    result = invoke("run", "reviews:server", *option)

    assert result.exit_code == 2
    assert option[0].strip("-") in result.output


@pytest.mark.parametrize("target", ["reviews:server", "app:app"])
def test_run_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    calls: list[dict[str, Any]] = []

    def run_server(app: Any, registry: Any, **options: Any) -> None:
        calls.append({"models": [model.name for model in registry], **options})

    monkeypatch.setattr(mlserve.cli, "run_server", run_server)

    result = invoke("run", target, "--port", "0", "--log-level", "error")

    assert result.exit_code == 0
    assert calls == [
        {
            "models": ["shout"],
            "host": "127.0.0.1",
            "port": 0,
            "log_level": "error",
            "timeout_keep_alive_s": 5,
        }
    ]


class Silent(ModelHandler[str, str]):
    def load(self) -> None:
        raise OSError("There are no weights.")

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


def test_a_model_that_did_not_load_fails_with_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = ModelServer(settings=ServerSettings(on_load_failure="serve"))
    server.add("silent", Silent).add("echo", EchoHandler)

    assert not check_server(server)

    lines = capsys.readouterr().out.splitlines()
    assert any("silent" in line and "failed: loading failed with OSError" in line for line in lines)
    assert any("echo" in line and "ok" in line for line in lines)
    assert not any("No examples: silent" in line for line in lines)


class Both(ModelHandler[str, str]):
    seen: list[str]

    def load(self) -> None:
        self.seen = []

    def warmup(self) -> None:
        """The examples are for the check alone."""

    async def examples(self) -> list[str]:
        return ["a", "b"]

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs

    async def stream(self, item: str) -> AsyncIterator[str]:
        yield item
        if item == "b":
            raise ValueError("[red]b cannot be streamed[/red]")


def test_examples_of_a_coroutine_go_through_infer_and_stream(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not check_server(ModelServer().add("both", Both))

    rows = [line for line in capsys.readouterr().out.splitlines() if "both" in line]
    assert ["predict" in row for row in rows] == [True, False, True, False]
    assert ["stream" in row for row in rows] == [False, True, False, True]
    assert ["ok" in row for row in rows] == [True, True, True, False]


class Forgetful(EchoHandler):
    def warmup(self) -> None:
        """The examples are for the check alone."""

    def examples(self) -> list[Any]:
        raise KeyError("sample.txt")


def test_examples_that_cannot_be_made_fail_that_model_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not check_server(ModelServer().add("a", Forgetful).add("b", EchoHandler))

    output = capsys.readouterr().out
    assert "KeyError: 'sample.txt'" in output
    assert "ok" in output


def test_a_model_without_examples_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Bare(ModelHandler[str, str]):
        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    assert check_server(ModelServer().add("bare", Bare))
    assert "No examples: bare." in capsys.readouterr().out
