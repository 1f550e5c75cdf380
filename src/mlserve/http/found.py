"""What a process is to serve, and how another process finds the same."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fastapi import FastAPI

from mlserve.errors import ConfigurationError
from mlserve.registry import Registry

__all__ = ["Find", "Served", "find_variable"]


class Served(Protocol):
    """An application and its models."""

    @property
    def app(self) -> Any:
        """The application."""

    @property
    def registry(self) -> Registry | None:
        """Its models; `None` if it is not one of ours."""


Find = Callable[[], Served]
"""Imports what is to be served; can be pickled."""


class Buildable(Protocol):
    """A server that makes its application itself."""

    registry: Registry

    def build(self) -> FastAPI:
        """Give the application."""


@dataclass(frozen=True, slots=True)
class _Built:
    app: Any
    registry: Registry


def find_variable(server: Buildable) -> Find:
    """
    Say how another process finds a server: by the variable of a module that holds it.

    Raises:
        ConfigurationError: If there is none.
    """
    main = sys.modules.get("__main__")
    # The main module first: it may have added to what another one has made.
    names = ["__main__"] if getattr(main, "__file__", None) is not None else []
    names += [name for name in sys.modules if name not in ("__main__", "__mp_main__")]
    for name in names:
        for variable, value in list(getattr(sys.modules[name], "__dict__", {}).items()):
            if value is server:
                return partial(_read_variable, name, variable)
    raise ConfigurationError(
        "Several HTTP processes need a server that each of them can import: make it a variable of"
        " a module, as in `server = ModelServer()`, and call `server.run(…)` below"
        " `if __name__ == '__main__':`."
    )


def _read_variable(module: str, variable: str) -> Served:
    server: Buildable = getattr(importlib.import_module(module), variable)
    return _Built(server.build(), server.registry)
