"""Words that tests send, and that no log may hold: what clients send is theirs."""

import copy
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlserve.http import errors
from mlserve.observability.access_log import AccessLogFormatter, JsonFormatter

__all__ = ["KEY", "PROMPT", "QUERY", "Watch", "watching", "watching_errors"]

KEY = "sk-canary-4711-of-a-key"
PROMPT = "canary-4711 of a prompt"
QUERY = "canary-4711-of-a-query"

_CANARY = re.compile(r"canary-(?:4711|0815)")
_FORMATTERS = (
    JsonFormatter(),
    AccessLogFormatter("%(levelname)s %(name)s: %(message)s"),
    logging.Formatter("%(message)s"),
)


class Watch(logging.Handler):
    """
    Looks for canaries in every line of a log, tracebacks included.

    Args:
        formatters: How lines are written; one that has a canary is kept with the test's name.
    """

    def __init__(self, *formatters: logging.Formatter) -> None:
        super().__init__(logging.DEBUG)
        self._formatters = formatters or _FORMATTERS
        self.n_lines = 0
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.n_lines += 1
        record = copy.copy(record)  # others find it as it was
        for formatter in self._formatters:
            record.exc_text = None  # else the first one's is taken
            try:
                line = formatter.format(record)
            except Exception as exc:  # tests break lines on purpose
                line = str(exc)
            if _CANARY.search(line):
                self.found.append(f"{os.environ.get('PYTEST_CURRENT_TEST')}: {line}")
                return


@contextmanager
def watching(*formatters: logging.Formatter) -> Iterator[Watch]:
    """Watch all that mlserve logs until the end of the block."""
    logger, watch = logging.getLogger("mlserve"), Watch(*formatters)
    logger.addHandler(watch)
    try:
        yield watch
    finally:
        logger.removeHandler(watch)


@contextmanager
def watching_errors() -> Iterator[list[str]]:
    """Watch all bodies of errors that are made until the end of the block; gives the bad ones."""
    found: list[str] = []
    dump = errors._dump

    def watched(*arguments: Any) -> bytes:
        body = dump(*arguments)
        if _CANARY.search(body.decode()):
            found.append(f"{os.environ.get('PYTEST_CURRENT_TEST')}: {body.decode()}")
        return body

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "_dump", watched)
        yield found
