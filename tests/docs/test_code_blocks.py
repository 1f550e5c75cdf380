"""Every code block of README and docs runs, and prints what the page says."""

import asyncio
import doctest
import importlib
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.util._once import Once
from tests.docs.pages import PAGES, SHOWN_URL, Block, blocks_of, name_of, parse_curl

from mlserve.testing import running

LANGUAGES = {"bash", "console", "html", "json", "nginx", "python", "text"}
# Values that are others each time; the pages show those of one real run.
CHANGING = {"created", "request_id", "server-timing", "time", "x-request-id"}


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def as_parameters() -> list[Any]:
    parameters = []
    for page in PAGES:
        source = page.read_text(encoding="utf-8")
        needs_server = "running(" in source or "started()" in source or "\ncurl " in source
        marks = [pytest.mark.slow, pytest.mark.timeout(120)] if needs_server else []
        parameters.append(pytest.param(page, id=name_of(page), marks=marks))
    return parameters


class Reader:
    """Does what a page says, from its top: its blocks share one module and one folder."""

    def __init__(self, page: Path, folder: Path, printed: Callable[[], str]) -> None:
        self.module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
        self._folder = folder
        self._printed = printed
        self._output = ""
        self._files: set[str] = set()

    def read(self, block: Block) -> None:
        if block.language == "python":
            self._run_python(block)
        elif block.is_command:
            self._run_curl(block)
        elif block.is_output:
            require_same(block, self._output)

    def _run_python(self, block: Block) -> None:
        if block.file_name is not None:
            (self._folder / block.file_name).write_text(block.text, encoding="utf-8")
            importlib.invalidate_caches()
        if SHOWN_URL in block.text:
            with running(self._application()) as client:
                url = str(client.base_url).rstrip("/")
                self._execute(block, block.text.replace(SHOWN_URL, url))
        else:
            self._execute(block, block.text)

    def _execute(self, block: Block, source: str) -> None:
        known = dict(vars(self.module))
        name = (block.file_name or "").removesuffix(".py")
        if name and name not in self._files:  # a further block of that name goes on with it
            self._files.add(name)
            sys.modules.pop(name, None)  # of another page
            vars(self.module).update(vars(importlib.import_module(name)))
        else:
            lines_before = "\n" * (block.line - 1)  # so that tracebacks name the page's own lines
            exec(compile(lines_before + source, str(block.page), "exec"), vars(self.module))  # noqa: S102 - it is our own page
        for name, function in list(vars(self.module).items()):
            if name.startswith("test_") and function is not known.get(name):
                result = function()
                if inspect.isawaitable(result):
                    asyncio.run(as_coroutine(result))
        self._output = self._printed()

    def _run_curl(self, block: Block) -> None:
        command = parse_curl(block.text)
        options: dict[str, Any] = {"headers": command.headers}
        if command.json is not None:
            options["json"] = json.loads(command.json)
        if command.file is not None:
            options["content"] = (self._folder / command.file).read_bytes()
        if command.form:
            options["files"] = {name: self._form_part(v) for name, v in command.form.items()}
        with running(self._application()) as client:
            answer: httpx2.Response = client.request(command.method, command.path, **options)
        self._output = answer.text

    def _form_part(self, value: str) -> Any:
        if not value.startswith("@"):
            return (None, value)
        path, _, media_type = value.removeprefix("@").partition(";type=")
        return (path, (self._folder / path).read_bytes(), media_type or None)

    def _application(self) -> Any:
        names = vars(self.module)
        found = names["app"] if "app" in names else names.get("server")
        assert found is not None, "The page calls a server, but has neither `app` nor `server`."
        return found


async def as_coroutine(awaitable: Any) -> Any:
    return await awaitable


def require_same(block: Block, output: str) -> None:
    if block.language == "json":
        assert without_changing(json.loads(output)) == without_changing(json.loads(block.text)), (
            f"{block} shows another output than: {output}"
        )
        return
    checker = doctest.OutputChecker()
    is_same = checker.check_output(
        f"{block.text.rstrip()}\n", f"{output.rstrip()}\n", doctest.ELLIPSIS
    )
    assert is_same, f"{block} shows another output than:\n{output}"


def without_changing(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "…" if key in CHANGING or key.endswith("_ms") else without_changing(item)
            for key, item in value.items()
        }
    return [without_changing(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder from which the page can import the files that it shows."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - known:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin is not None and Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("page", as_parameters())
def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(
    page: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader = Reader(page, folder, lambda: capsys.readouterr().out)
    # A process has one provider of tracers for its whole life; no page's is left behind.
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setitem(sys.modules, reader.module.__name__, reader.module)

    for block in blocks_of(page):
        reader.read(block)


def test_every_page_of_the_docs_begins_with_code_that_runs() -> None:
    without = [
        name_of(page)
        for page in PAGES
        if (blocks := blocks_of(page)) and blocks[0].language != "python"
    ]
    empty = [name_of(page) for page in PAGES if not blocks_of(page)]

    assert (without, empty) == ([], [])


def test_every_block_says_a_language_that_is_checked_and_nothing_else() -> None:
    others = [
        f"{block}: {block.language!r}"
        for page in PAGES
        for block in blocks_of(page)
        if block.language not in LANGUAGES
    ]

    assert others == []


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_a_json_block_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_a_curl_command_sends_json_with_its_content_type_or_gets_something(block: Block) -> None:
    commands = [line for line in block.text.splitlines() if line.startswith("curl ")]

    assert commands == [] or (block.is_command and parse_curl(block.text).path.startswith("/"))
