"""Loggers whose handlers may break: a line that cannot be written must not cost an answer."""

import logging
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

__all__ = ["SafeLogger", "get_logger"]


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A standard logger whose calls never raise, whatever its handlers and filters do."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Leave message and facts as they are given."""
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a line; what goes wrong with it is dropped, as there is nobody else to tell."""
        kwargs.setdefault("stacklevel", 2)
        with suppress(Exception):  # a handler of the user may raise anything
            super().log(level, msg, *args, **kwargs)


def get_logger(name: str) -> SafeLogger:
    """Give the logger of a module."""
    return SafeLogger(logging.getLogger(name))
