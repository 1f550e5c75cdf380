"""Finding what a command is to work on: `module:attr`."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from fastapi import FastAPI
from pydantic import ValidationError

from mlserve.errors import ConfigurationError
from mlserve.registry import Registry
from mlserve.server import ModelServer

__all__ = ["Found", "Target", "find", "load_target"]

Target = Annotated[
    str,
    typer.Argument(metavar="MODULE:ATTR", help="A ModelServer or FastAPI app, as reviews:server."),
]
"""The argument of a command that works on a server."""


@dataclass(frozen=True, slots=True)
class Found:
    """What `module:attr` names."""

    app: Any
    """The application."""
    server: ModelServer | None
    """The server, if it names one."""
    registry: Registry | None
    """Its models; `None` for an application that has none of ours."""


def find(target: str) -> Found:
    """Import what a command is to work on; if that cannot be found, say so and end with 2."""
    try:
        return load_target(target)
    except ConfigurationError as exc:
        typer.echo(f"mlserve: {exc}", err=True)
        raise typer.Exit(2) from None


def load_target(target: str) -> Found:
    """
    Import what `module:attr` names; the working directory is searched first.

    Raises:
        ConfigurationError: If it cannot be found or is neither a `ModelServer` nor an application.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(
            f"Name a module and an attribute, as reviews:server, not {target!r}."
        )
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        raise ConfigurationError(f"There is no module {exc.name!r} in {directory}.") from exc
    except ValidationError as exc:  # settings from the environment, where the module makes them
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        raise ConfigurationError(f"{exc.title} cannot be made. {wrong}.") from exc
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{module_name!r} has no attribute {attribute!r}.")
        found = getattr(found, part)
    if isinstance(found, ModelServer):
        return Found(found.build(), found, found.registry)
    if isinstance(found, FastAPI):
        return Found(found, None, getattr(found.state, "mlserve_registry", None))
    raise ConfigurationError(
        f"{target!r} is {type(found).__name__!r}: it must be a ModelServer or a FastAPI app."
    )
