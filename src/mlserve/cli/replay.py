"""`mlserve replay`: do recorded requests get the same answers from another version?"""

import asyncio
import importlib
import json
import re
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mlserve.cli.progress import show_progress
from mlserve.cli.target import find
from mlserve.errors import ConfigurationError, ModelNotFoundError
from mlserve.model import Model
from mlserve.records.recording import Recording
from mlserve.records.selection import Kept, Selection
from mlserve.replay import Report, Tally, Tolerance, page, reported
from mlserve.replay import replay as replay_records
from mlserve.server import ModelServer

__all__ = ["replay"]

_AGO = re.compile(r"(\d+(?:\.\d+)?)([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_NO_PAYLOADS = "without payloads"
_INTERRUPTED = 130  # as shells have it: ended by SIGINT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is replayed, and how."""

    url: str
    target: str
    server: ModelServer
    model: str | None
    version: str | None
    against_version: str | None
    limit: int
    since: datetime | None
    only: Literal["ok", "all"]
    tolerance: Tolerance
    concurrency: int


@dataclass(slots=True)
class _State:
    """How far a replay has come; whoever interrupts it reads it here."""

    tally: Tally
    selection: Selection | None = None
    against: Model | None = None


class _LoadFailedError(Exception):
    """The models of the target could not be loaded."""


def replay(  # noqa: PLR0913 - one option per aspect of a replay
    url: Annotated[
        str,
        typer.Argument(metavar="SINK_URL", help="The URL of the SqlSink that has the records."),
    ],
    against: Annotated[
        str, typer.Option(metavar="MODULE:ATTR", help="The ModelServer to ask, as reviews:server.")
    ],
    model: Annotated[str | None, typer.Option(help="The model, if there are several.")] = None,
    version: Annotated[
        str | None, typer.Option(help="The version of the records; the newest one that has any.")
    ] = None,
    against_version: Annotated[
        str | None, typer.Option(help="The version to ask; the newest one.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many requests, the latest.")] = 1000,
    since: Annotated[
        str | None, typer.Option(help="Only those since then: 2026-11-01, or 30m, 24h, 7d ago.")
    ] = None,
    only: Annotated[
        Literal["ok", "all"], typer.Option(help="Those that were answered with success, or all.")
    ] = "ok",
    rtol: Annotated[
        float, typer.Option(min=0.0, help="By which part of the larger one numbers may differ.")
    ] = 1e-4,
    atol: Annotated[float, typer.Option(min=0.0, help="By how much numbers may differ.")] = 1e-6,
    concurrency: Annotated[int, typer.Option(min=1, help="How many requests run at once.")] = 16,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write what came of it.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Where to write a report to look at.")] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="End with 1 if a larger share differs or fails."),
    ] = None,
) -> None:
    """Run recorded requests on another version and report what is answered differently."""
    try:
        for path in (json_file, html):
            if path is not None and not path.absolute().parent.is_dir():
                raise ConfigurationError(f"There is no folder {str(path.absolute().parent)!r}.")
        plan = _Plan(
            url=url,
            target=against,
            server=_server_of(against),
            model=model,
            version=version,
            against_version=against_version,
            limit=limit,
            since=None if since is None else _time_of(since),
            only=only,
            tolerance=Tolerance(rtol, atol),
            concurrency=concurrency,
        )
    except ConfigurationError as exc:
        raise _ended(2, exc) from None
    report, is_interrupted = _replayed(plan)
    _show(report, Console())
    _write(report, json_file, html)
    if is_interrupted:
        raise typer.Exit(_INTERRUPTED)
    if fail_above is not None and report.share > fail_above:
        raise typer.Exit(1)


def _replayed(plan: _Plan) -> tuple[Report, bool]:
    """Replay until the end or an interrupt, and say which of them it was."""
    state = _State(Tally())
    is_interrupted = False
    try:
        asyncio.run(_run(plan, state))
    except (ConfigurationError, ImportError) as exc:
        raise _ended(2, exc) from None
    except _LoadFailedError as exc:
        raise _ended(3, exc) from None
    except KeyboardInterrupt:
        is_interrupted = True
    return _report_of(state, plan, is_interrupted=is_interrupted), is_interrupted


def _ended(code: int, why: Exception) -> typer.Exit:
    typer.echo(f"mlserve: {why}", err=True)
    return typer.Exit(code)


def _server_of(target: str) -> ModelServer:
    server = find(target).server
    if server is None:
        raise ConfigurationError("`--against` must be a ModelServer, as reviews:server.")
    # Its sinks would open what they write to, and there is nothing to write.
    server.registry.recording = Recording()
    return server


def _time_of(text: str) -> datetime:
    """
    Read a date, or how long ago something was.

    Raises:
        ConfigurationError: If it is neither.
    """
    try:
        if ago := _AGO.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"`--since` must be a date such as 2026-11-01 or 2026-11-01T12:00+01:00, or a time ago"
            f" such as 30m, 24h or 7d, got {text!r}."
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


async def _run(plan: _Plan, state: _State) -> None:
    # Not imported above: SQLAlchemy is an extra.
    reading = importlib.import_module("mlserve.integrations.sql_records")
    async with AsyncExitStack() as stack:
        records = await stack.enter_async_context(reading.SqlRecords(plan.url))
        selection = _selected(plan, await records.kept())
        against = _model_of(plan.server, selection.model, plan.against_version)
        n_records, n_usable = await records.count(selection)
        if not n_usable:
            raise ConfigurationError(_nothing(selection, n_records))
        state.selection, state.against = selection, against
        state.tally.left_out[_NO_PAYLOADS] += n_records - n_usable
        with show_progress(plan.server.registry):
            await _load(stack, plan.server, against)
        found = await stack.enter_async_context(aclosing(records.read(selection)))
        with _progress() as progress:
            bar = progress.add_task("replay", total=min(n_usable, plan.limit), note="")
            await replay_records(
                found,
                against,
                state.tally,
                tolerance=plan.tolerance,
                concurrency=plan.concurrency,
                note=lambda: progress.update(bar, advance=1, note=_so_far(state.tally)),
            )
        if not state.tally.outcomes:
            reasons = "; ".join(f"{n:,} {why}" for why, n in state.tally.left_out.items() if n)
            raise ConfigurationError(f"No record could be replayed: {reasons}.")


async def _load(stack: AsyncExitStack, server: ModelServer, model: Model) -> None:
    try:
        await stack.enter_async_context(server.started())
        stack.push_async_exit(partial(_hurry, server))
    except Exception as exc:
        raise _LoadFailedError(f"The models cannot be loaded. {type(exc).__name__}: {exc}") from exc
    life = model.engine.lifecycle
    if not life.is_ready:
        raise _LoadFailedError(f"Model `{model.name}` is {life.state}: {life.reason}.")


async def _hurry(server: ModelServer, kind: type[BaseException] | None, *_: object) -> None:
    """Do not wait for what a model is still at work for if somebody has interrupted."""
    if kind is not None and issubclass(kind, asyncio.CancelledError):
        await server.registry.hurry()


def _selected(plan: _Plan, kept: list[Kept]) -> Selection:
    """
    Say which records are meant.

    Raises:
        ConfigurationError: If there are none, or of several models.
    """
    models = sorted({each.model for each in kept})
    if not models:
        raise ConfigurationError("There are no records in this database.")
    if plan.model is None and len(models) > 1:
        raise ConfigurationError(
            f"There are records of {', '.join(models)}. Name one of them with `--model`."
        )
    model = plan.model or models[0]
    versions = sorted({each.version for each in kept if each.model == model}, key=_number)
    if not versions:
        raise ConfigurationError(
            f"There are no records of a model {model!r}, but of {', '.join(models)}."
        )
    if plan.version not in (None, *versions):
        raise ConfigurationError(
            f"There are no records of {model} {plan.version}, but of {', '.join(versions)}."
        )
    return Selection(
        model=model,
        version=plan.version or versions[-1],
        since=plan.since,
        only=plan.only,
        limit=plan.limit,
    )


def _number(version: str) -> tuple[int, str]:
    digits = version.removeprefix("v")
    return (int(digits) if digits.isdecimal() else -1, version)


def _nothing(selection: Selection, n_records: int) -> str:
    which = f"{selection.model} {selection.version}"
    if not n_records:
        return f"No records of {which} are meant: look at `--since` and `--only`."
    return (
        f"The {n_records:,} records of {which} have no payloads. A sink with"
        " `options=SinkOptions(keep_payloads=True)` keeps those that are JSON of at most 1 MiB."
    )


def _model_of(server: ModelServer, name: str, version: str | None) -> Model:
    try:
        return server.model_for(name, version)
    except ModelNotFoundError:
        known = ", ".join(f"{model.name} {model.version}" for model in server.models())
        which = name if version is None else f"{name} {version}"
        raise ConfigurationError(
            f"The server of `--against` has no model {which}, but {known or 'none'}."
        ) from None


def _progress() -> Progress:
    """Show on stderr how far it is, where a person looks on."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _so_far(tally: Tally) -> str:
    n_bad = sum(outcome.verdict != "same" for outcome in tally.outcomes)
    return f"{n_bad:,} differ"


def _report_of(state: _State, plan: _Plan, *, is_interrupted: bool) -> Report:
    selection, against, tally = state.selection, state.against, state.tally
    if selection is None or against is None:  # interrupted before anything was found
        raise typer.Exit(_INTERRUPTED)
    notes = []
    if is_interrupted:
        notes.append("Interrupted: these are not all requests.")
    if tally.n_redacted:
        notes.append(
            f"Replayed with redacted values, and perhaps answered differently for that:"
            f" {tally.n_redacted:,}."
        )
    return reported(
        tally.outcomes,
        model=selection.model,
        version=selection.version,
        target=plan.target,
        against=against.version,
        tolerance=plan.tolerance,
        left_out=tally.left_out,
        notes=notes,
    )


def _show(report: Report, console: Console) -> None:
    table = Table("requests", "same", "different", "failed", "share")
    counts = (report.n_requests, report.n_same, report.n_different, report.n_failed)
    table.add_row(*(f"{n:,}" for n in counts), f"{report.share:.2%}")
    console.print(escape(report.title), highlight=False)
    console.print(table)
    if report.changes:
        table = Table("recorded → now", "requests")
        for change, n in report.changes.items():
            table.add_row(escape(change), f"{n:,}")
        console.print(table)
    if report.places:
        table = Table("place", "how", "requests", "largest", "relative", "such as")
        for place in report.places:
            figures = (f"{place.n_requests:,}", f"{place.absolute:.3g}", f"{place.relative:.3g}")
            how, ids = ", ".join(place.kinds), ", ".join(place.request_ids)
            table.add_row(escape(place.pattern or "/"), how, *figures, escape(ids))
        console.print(table)
    if report.changes:
        named = ", ".join(outcome.request_id for outcome in report.named)
        console.print(f"Such as {escape(named)}.", highlight=False)
    if report.total is not None:
        _show_latencies(report, console)
    if report.batches is not None:
        console.print(report.batches, highlight=False)
    for why, n in report.left_out.items():
        console.print(f"Left out: {n:,} {why}.")
    for note in report.notes:
        console.print(note)


def _show_latencies(report: Report, console: Console) -> None:
    table = Table("ms", "recorded median", "new median", "ratio", "recorded p95", "new p95")
    for name, found in (("in total", report.total), ("in infer", report.infer)):
        if found is not None:
            ratio = "-" if found.ratio is None else f"{found.ratio:.2f}"
            medians = (f"{found.old_median:,.2f}", f"{found.new_median:,.2f}")
            p95s = (f"{found.old_p95:,.2f}", f"{found.new_p95:,.2f}")
            table.add_row(name, *medians, ratio, *p95s)
    console.print(table)


def _write(report: Report, json_file: Path | None, html: Path | None) -> None:
    written: list[tuple[Path | None, Any]] = [
        (json_file, lambda: json.dumps(report.as_json(), indent=2)),
        (html, lambda: page(report)),
    ]
    for path, text in written:
        if path is not None:
            try:
                path.write_text(text(), encoding="utf-8")
            except OSError as exc:
                raise _ended(2, ConfigurationError(f"{exc.strerror}: {str(path)!r}.")) from None
