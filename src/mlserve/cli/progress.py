"""Load progress on a terminal."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mlserve.lifecycle import ModelState
from mlserve.model import Model
from mlserve.registry import Registry

__all__ = ["show_progress"]

_REDRAW_S = 0.1


@contextmanager
def show_progress(registry: Registry | None) -> Iterator[None]:
    """Show a bar per model on stderr until all are loaded; nothing where no person looks on."""
    if registry is None or not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_draw, args=(registry, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)


def _draw(registry: Registry, ended: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars = [(model, progress.add_task(model.name, total=1.0, note="")) for model in registry]
        while not ended.wait(_REDRAW_S):
            for model, bar in bars:
                _update(progress, bar, model)
            if registry.loaded.is_set():
                return


def _update(progress: Progress, bar: TaskID, model: Model) -> None:
    reported = list(model.engine.progress.values())
    state = model.engine.lifecycle.state
    done = 1.0 if state is ModelState.READY else min([fraction for fraction, _ in reported] or [0])
    note = next((note for _, note in reported if note), "") if state is ModelState.LOADING else ""
    progress.update(bar, completed=done, note=f"{state} {note}")
