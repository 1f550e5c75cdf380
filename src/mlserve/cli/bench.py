"""`mlserve bench`: how fast does a running server answer?"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mlserve.errors import ConfigurationError
from mlserve.loadtest.chart import Series, lines
from mlserve.loadtest.connection import Answer, Target
from mlserve.loadtest.loops import closed_loop, open_loop
from mlserve.loadtest.summary import Percentiles, Summary, percentile, summarised

__all__ = ["bench"]

_REDRAW_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How a server is asked."""

    target: Target
    seconds: float
    warm_up_s: float = 1.0
    """How long it is asked before anything counts."""
    n_clients: int = 16
    """How many clients there are in the closed loop."""
    per_s: float | None = None
    """How many requests per second in an open loop; `None` = the loop is closed."""
    slo_s: float | None = None
    """Within which time an answer is of use, in seconds."""
    seed: int = 1


def bench(  # noqa: PLR0913 - one option per aspect of a load
    url: Annotated[str, typer.Argument(help="What to ask, as http://127.0.0.1:8000/v1/…/predict.")],
    body: Annotated[str | None, typer.Option(help="The JSON to send; @file reads it.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="A header, as 'Name: value'.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask again at once.")] = 16,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Requests/s at random times instead.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For how long.")] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds before anything counts.")] = 1.0,
    slo_ms: Annotated[
        float | None, typer.Option(min=0.1, help="Within which time an answer is of use.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write the figures.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Where to draw the latencies, as SVG.")] = None,
) -> None:
    """Ask a running server again and again, and print how fast it answers."""
    plan = _Plan(
        target=_target_of(url, body, header or []),
        seconds=seconds,
        warm_up_s=warm_up,
        n_clients=clients,
        per_s=rate,
        slo_s=None if slo_ms is None else slo_ms / 1e3,
    )
    console = Console()
    summary, answers = _measured(plan, console)
    _show(summary, console)
    if json_file is not None:
        json_file.write_text(json.dumps(summary.as_json(), indent=2), encoding="utf-8")
    if chart is not None:
        chart.write_text(_chart(answers, url), encoding="utf-8")
    if summary.latency is None:
        raise typer.Exit(1)


def _target_of(url: str, body: str | None, headers: list[str]) -> Target:
    pairs = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise typer.BadParameter(f"A header looks like 'Name: value', not {header!r}.")
        pairs.append((name.strip(), value.strip()))
    try:
        text = Path(str(body)[1:]).read_text("utf-8") if (body or "").startswith("@") else body
        return Target(url, None if text is None else text.encode(), tuple(pairs))
    except (ConfigurationError, OSError) as exc:
        typer.echo(f"mlserve: {exc}", err=True)
        raise typer.Exit(2) from None


def _measured(plan: _Plan, console: Console) -> tuple[Summary, list[Answer]]:
    """Ask a server, show on the console how that goes, and say what came of it."""
    return uvloop.run(_measure(plan, console))


async def _measure(plan: _Plan, console: Console) -> tuple[Summary, list[Answer]]:
    if plan.warm_up_s > 0:
        await _ask(plan, plan.warm_up_s, _ignore)
    answers: list[Answer] = []
    started = time.perf_counter()
    with _progress(console, answers, plan):
        n_unsent = await _ask(plan, plan.seconds, answers.append)
    # Answers that came after the end were asked for before it, and took part of its time.
    seconds = max(plan.seconds, time.perf_counter() - started if plan.per_s is None else 0.0)
    return summarised(answers, seconds, n_unsent=n_unsent, slo_s=plan.slo_s), answers


async def _ask(plan: _Plan, seconds: float, note: Callable[[Answer], None]) -> int:
    if plan.per_s is None:
        await closed_loop(plan.target, plan.n_clients, seconds, note)
        return 0
    return await open_loop(plan.target, plan.per_s, seconds, note, random.Random(plan.seed))


def _ignore(answer: Answer) -> None:
    """What warms up does not count."""


@contextmanager
def _progress(console: Console, answers: list[Answer], plan: _Plan) -> Iterator[None]:
    """Show each second what the last one has brought, where a person looks on."""
    if not console.is_terminal:
        yield
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:
        task = asyncio.get_running_loop().create_task(_redraw(live, answers, plan))
        try:
            yield
        finally:
            task.cancel()


async def _redraw(live: Live, answers: list[Answer], plan: _Plan) -> None:
    seen, left_s = 0, plan.seconds
    while True:
        await asyncio.sleep(_REDRAW_S)
        left_s -= _REDRAW_S
        new = answers[seen:]
        seen = len(answers)
        good = sorted(a.latency_s for a in new if 200 <= a.status < 300)
        median = f"{percentile(good, 0.5) * 1e3:.1f} ms" if good else "-"
        live.update(
            f"{len(good) / _REDRAW_S:,.0f}/s, median {median}, {len(new) - len(good)} others,"
            f" {max(left_s, 0):.0f} s left",
            refresh=True,
        )


def _show(summary: Summary, console: Console) -> None:
    """Print a table of what came of it, durations in milliseconds."""
    table = Table("ms", "p50", "p90", "p95", "p99", "p99.9", "most")
    for name, found in (
        ("answers", summary.latency),
        ("refusals", summary.refusals),
        ("first chunk", summary.first_chunk),
        ("between chunks", summary.between_chunks),
    ):
        if found is not None:
            table.add_row(name, *_cells(found))
    counts = ", ".join(f"{n:,} {status}" for status, n in summary.statuses.items())
    console.print(f"{summary.per_s:,.1f} answers/s in {summary.seconds:.1f} s: {counts or 'none'}")
    if summary.n_unsent:
        console.print(f"{summary.n_unsent:,} could not be sent: every connection was waiting.")
    if summary.goodput_per_s is not None:
        console.print(f"{summary.goodput_per_s:,.1f}/s within the objective")
    if summary.chunks_per_s:
        console.print(f"{summary.chunks_per_s:,.1f} chunks/s")
    console.print(table)


def _cells(found: Percentiles) -> list[str]:
    values = (found.p50, found.p90, found.p95, found.p99, found.p999, found.most)
    return [f"{value * 1e3:,.2f}" for value in values]


def _chart(answers: list[Answer], title: str) -> str:
    """Draw the median and the 99th percentile of each second's answers, as SVG."""
    good = sorted((a.ended_at, a.latency_s) for a in answers if 200 <= a.status < 300)
    by_second: dict[int, list[float]] = {}
    for ended_at, latency_s in good:
        by_second.setdefault(int(ended_at - good[0][0]), []).append(latency_s)
    shares = partial(_line, by_second)
    series = [Series("median", shares(0.5)), Series("99 %", shares(0.99))]
    return lines(title, "seconds", "latency in ms", series)


def _line(by_second: dict[int, list[float]], share: float) -> list[tuple[float, float]]:
    return [
        (float(second), percentile(sorted(values), share) * 1e3)
        for second, values in sorted(by_second.items())
    ]
