"""The bars that are drawn on a terminal while models load."""

import asyncio
import sys
import threading
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from mlserve import ModelServer
from mlserve.cli import progress as drawing
from mlserve.lifecycle import ModelState
from mlserve.registry import Registry
from mlserve.testing import EchoHandler


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_REDRAW_S", 0.0)


def loaded_registry() -> Registry:
    server = ModelServer().add("echo", EchoHandler)

    async def load() -> None:
        async with server.started():
            pass

    asyncio.run(load())
    assert server.registry.loaded.is_set()
    return server.registry


def bar_of(server: ModelServer) -> tuple[float, str]:
    model = server.models()[0]
    with Progress(TextColumn("x"), console=Console(quiet=True)) as progress:
        bar = progress.add_task("m", total=1.0, note="")
        drawing._update(progress, bar, model)
        task = progress.tasks[0]
        return task.completed, task.fields["note"]


def test_drawing_ends_by_itself_once_all_models_are_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")

    drawing._draw(loaded_registry(), threading.Event())

    assert "echo" in capsys.readouterr().err


def test_drawing_ends_when_it_is_told() -> None:
    ended = threading.Event()
    ended.set()

    drawing._draw(ModelServer().add("echo", EchoHandler).registry, ended)


def test_a_bar_shows_the_slowest_replica_and_its_note() -> None:
    server = ModelServer().add("echo", EchoHandler)
    engine = server.models()[0].engine
    engine.lifecycle.move(ModelState.LOADING)
    engine.progress.update({0: (0.75, ""), 1: (0.25, "reading shard 1 of 4")})

    assert bar_of(server) == (0.25, "loading reading shard 1 of 4")


def test_a_bar_of_a_ready_model_is_full() -> None:
    server = ModelServer().add("echo", EchoHandler)
    for state in ("LOADING", "WARMING", "READY"):
        server.models()[0].engine.lifecycle.move(ModelState[state])

    assert bar_of(server) == (1.0, "ready ")


@pytest.mark.parametrize("has_models", [True, False])
def test_bars_are_drawn_only_of_models_and_only_for_a_person(
    monkeypatch: pytest.MonkeyPatch, has_models: bool
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(drawing, "_draw", lambda registry, ended: drawn.append(registry))
    registry = ModelServer().add("echo", EchoHandler).registry if has_models else None

    with drawing.show_progress(registry):
        pass
    assert drawn == []

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with drawing.show_progress(registry):
        pass
    assert drawn == ([registry] if has_models else [])
