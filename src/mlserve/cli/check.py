"""`mlserve check`: does this server work, and how fast is it on its own examples?"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlserve.model import Model
from mlserve.server import ModelServer

__all__ = ["check_server"]


@dataclass(frozen=True, slots=True)
class _Row:
    """What came out of one thing that was tried."""

    model: Model
    example: int
    """The example's number, from 1; 0 = the model's start."""
    what: str
    """What was tried: `load`, `examples`, `predict` or `stream`."""
    problem: str | None
    seconds: float


def check_server(server: ModelServer) -> bool:
    """
    Load, warm up and run every model's examples, and print a table of what came out.

    Returns:
        Whether everything worked.
    """
    console = Console()
    try:
        rows = asyncio.run(_check_all(server))
    except Exception as exc:  # noqa: BLE001 - user code may raise anything
        console.print(f"[red]failed[/red] {escape(_described(exc))}", highlight=False)
        return False
    table = Table("model", "version", "example", "tried", "result", "ms")
    for row in rows:
        about = (row.model.name, row.model.version, str(row.example), row.what)
        table.add_row(*about, escape(row.problem or "ok"), f"{row.seconds * 1000:.1f}")
    console.print(table)
    without = sorted({row.model.name for row in rows if row.what == "load" and not row.problem})
    if without:
        console.print(f"No examples: {', '.join(without)}. Write `examples` to check more.")
    return all(row.problem is None for row in rows)


async def _check_all(server: ModelServer) -> list[_Row]:
    started = time.perf_counter()
    async with server.started():
        load_s = time.perf_counter() - started
        return [row for model in server.models() async for row in _check(model, load_s)]


async def _check(model: Model, load_s: float) -> AsyncIterator[_Row]:
    life, contract = model.engine.lifecycle, model.engine.spec.contract
    if not life.is_ready:
        reason = f"{life.state}: {life.reason}" if life.reason else str(life.state)
        yield _Row(model, 0, "load", reason, load_s)
        return
    try:
        examples = await _examples_of(model)
    except Exception as exc:  # noqa: BLE001 - user code may raise anything
        yield _Row(model, 0, "examples", _described(exc), load_s)
        return
    if not examples:
        yield _Row(model, 0, "load", None, load_s)
    for number, example in enumerate(examples, start=1):
        if contract.can_infer:
            yield await _tried(model, number, "predict", example)
        if contract.can_stream:
            yield await _tried(model, number, "stream", example)


async def _examples_of(model: Model) -> list[Any]:
    examples = model.engine.spec.example.examples()
    return list(await examples if inspect.isawaitable(examples) else examples)


async def _tried(model: Model, number: int, what: str, example: Any) -> _Row:
    before = time.perf_counter()
    problem = None
    try:
        if what == "predict":
            await model.predict(example)
        else:
            async for _ in model.stream(example):
                pass
    except Exception as exc:  # noqa: BLE001 - user code may raise anything
        problem = _described(exc)
    return _Row(model, number, what, problem, time.perf_counter() - before)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
