"""`mlserve check` as a process, and the messages for a target that is none."""

from pathlib import Path

import pytest
from tests.cli.projects import run_command, write_project

import mlserve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


def test_a_server_that_works_is_told_with_its_timings(folder: Path) -> None:
    code, output, errors = run_command(folder, "check", "reviews:server")

    assert code == 0, errors
    assert "shout" in output
    assert "ok" in output
    assert output.index("load\n") < output.index("unload\n")


def test_an_example_that_fails_ends_with_1(folder: Path) -> None:
    code, output, _ = run_command(folder, "check", "reviews:server", FAIL="example")

    assert code == 1
    assert "ModelError" in output
    assert "unload" in output


def test_a_load_that_fails_ends_with_1_and_its_reason(folder: Path) -> None:
    code, output, _ = run_command(folder, "check", "reviews:server", FAIL="load")

    assert code == 1
    assert "OSError: There are no weights." in output


TARGETS = {
    "reviews": "as reviews:server",
    ":server": "as reviews:server",
    "reviews:": "as reviews:server",
    "nothing:server": "no module 'nothing'",
    "reviews:sever": "no attribute 'sever'",
    "reviews:server.nothing": "no attribute 'server.nothing'",
    "reviews:text": "must be a ModelServer or a FastAPI app",
    "broken:server": "no_such_package_4711",
}


@pytest.mark.parametrize(("target", "message"), TARGETS.items())
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_wrong_target_ends_with_2_and_says_why(
    folder: Path, command: str, target: str, message: str
) -> None:
    code, _, errors = run_command(folder, command, target)

    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_the_version_is_told(folder: Path) -> None:
    assert run_command(folder, "version") == (0, f"{mlserve.__version__}\n", "")


def test_without_a_command_the_help_is_shown(folder: Path) -> None:
    code, output, errors = run_command(folder)

    assert code in (0, 2)
    assert "run" in output + errors
    assert "check" in output + errors
