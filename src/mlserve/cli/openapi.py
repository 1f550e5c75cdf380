"""`mlserve openapi`: the schema of a server, and whether it could break clients of an older one."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mlserve.cli.breaking import breaking_changes
from mlserve.cli.target import Target, find
from mlserve.errors import ConfigurationError

__all__ = ["openapi"]


def openapi(
    target: Target,
    out: Annotated[Path | None, typer.Option(help="Write the schema to this file.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="An older schema whose clients must not break.")
    ] = None,
) -> None:
    """Print the OpenAPI schema, or what of it could break clients of an older one."""
    app = find(target).app
    try:
        if out is not None or check is None:
            _write(app, out)
        if check is not None and not _check(app, check):
            raise typer.Exit(1)
    except ConfigurationError as exc:
        typer.echo(f"mlserve: {exc}", err=True)
        raise typer.Exit(2) from None


def _write(app: Any, out: Path | None) -> None:
    text = json.dumps(app.openapi(), indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    try:
        out.write_text(f"{text}\n", encoding="utf-8")
    except OSError as exc:
        raise ConfigurationError(f"{str(out)!r} cannot be written: {exc.strerror}.") from exc


def _check(app: Any, path: Path) -> bool:
    """Print what could break clients, and say whether nothing could."""
    # Through JSON, as the old one was: tuples and enums become what a client reads.
    changes = breaking_changes(_read(path), json.loads(json.dumps(app.openapi())))
    for change in changes:
        typer.echo(change)
    if not changes:
        typer.echo("No breaking changes.")
    return not changes


def _read(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"{str(path)!r} cannot be read: {exc.strerror}.") from exc
    except ValueError as exc:
        raise ConfigurationError(f"{str(path)!r} is no JSON.") from exc
    if not isinstance(found, dict) or not isinstance(found.get("paths"), dict):
        raise ConfigurationError(f"{str(path)!r} is no OpenAPI schema: it has no `paths`.")
    return found
