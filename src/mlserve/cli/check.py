"""`mlserve check`: does this server work, and how fast is it on its own examples?"""

import asyncio
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from mlserve.model import Model
from mlserve.server import ModelServer

__all__ = ["check_server"]


def check_server(server: ModelServer) -> bool:
    """
    Load, warm up and run every model's examples, and print a table of what came out.

    Returns:
        Whether everything worked.
    """
    console = Console()
    try:
        results = asyncio.run(_check_all(server))
    except Exception as exc:  # noqa: BLE001 - user code may raise anything
        console.print(f"[red]failed[/red] {type(exc).__name__}: {exc}", highlight=False)
        return False
    table = Table("model", "version", "example", "result", "ms")
    for model, number, outcome, seconds in results:
        shown = f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, Exception) else "ok"
        table.add_row(model.name, model.version, str(number), shown, f"{seconds * 1000:.1f}")
    console.print(table)
    without = sorted({model.name for model, number, _, _ in results if number == 0})
    if without:
        console.print(f"No examples: {', '.join(without)}. Write `examples` to check more.")
    return not any(isinstance(outcome, Exception) for _, _, outcome, _ in results)


async def _check_all(server: ModelServer) -> list[tuple[Model, int, Any, float]]:
    started = time.perf_counter()
    results: list[tuple[Model, int, Any, float]] = []
    async with server.started():
        load_s = time.perf_counter() - started
        for model in server.models():
            examples = list(model.engine.spec.example.examples())
            if not examples:
                results.append((model, 0, None, load_s))
            for number, example in enumerate(examples, start=1):
                before = time.perf_counter()
                outcome = await _outcome(model, example)
                results.append((model, number, outcome, time.perf_counter() - before))
    return results


async def _outcome(model: Model, example: Any) -> Any:
    try:
        if model.engine.spec.contract.can_infer:
            return await model.predict(example)
        return [chunk async for chunk in model.stream(example)]
    except Exception as exc:  # noqa: BLE001 - user code may raise anything
        return exc
