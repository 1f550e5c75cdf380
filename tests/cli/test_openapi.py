"""`mlserve openapi`: the schema on the terminal, in a file, and against an older one."""

import json
from pathlib import Path

import pytest
from tests.cli.projects import run_command, write_project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


def test_the_schema_is_printed_as_json_and_nothing_is_loaded(folder: Path) -> None:
    code, output, errors = run_command(folder, "openapi", "reviews:server")

    assert code == 0, errors
    schema = json.loads(output)
    assert schema["info"]["title"] == "Reviews"
    assert "/v1/models/shout/predict" in schema["paths"]


def test_the_schema_that_was_written_is_one_that_nothing_breaks(folder: Path) -> None:
    written = run_command(folder, "openapi", "reviews:server", "--out", "old.json")
    checked = run_command(folder, "openapi", "reviews:server", "--check", "old.json")

    assert written[:2] == (0, "")
    assert checked[:2] == (0, "No breaking changes.\n")


def test_what_breaks_is_listed_and_ends_with_1(folder: Path) -> None:
    run_command(folder, "openapi", "reviews:server", "--out", "older.json")
    schema = json.loads((folder / "older.json").read_text(encoding="utf-8"))
    schema["paths"]["/v1/models/whisper/predict"] = schema["paths"]["/v1/models/shout/predict"]
    (folder / "older.json").write_text(json.dumps(schema), encoding="utf-8")

    code, output, _ = run_command(folder, "openapi", "reviews:server", "--check", "older.json")

    assert (code, output) == (1, "POST /v1/models/whisper/predict is gone.\n")


WRONG = {
    "missing.json": "cannot be read",
    "words.json": "is no JSON",
    "list.json": "is no OpenAPI schema",
    "other.json": "is no OpenAPI schema",
}


@pytest.mark.parametrize(("name", "message"), WRONG.items())
def test_a_file_that_holds_no_schema_ends_with_2(folder: Path, name: str, message: str) -> None:
    (folder / "words.json").write_text("words", encoding="utf-8")
    (folder / "list.json").write_text("[]", encoding="utf-8")
    (folder / "other.json").write_text('{"paths": 1}', encoding="utf-8")

    code, _, errors = run_command(folder, "openapi", "reviews:server", "--check", name)

    assert code == 2
    assert message in errors


def test_a_file_that_cannot_be_written_ends_with_2(folder: Path) -> None:
    code, _, errors = run_command(folder, "openapi", "reviews:server", "--out", "no/such/place")

    assert code == 2
    assert "cannot be written" in errors
