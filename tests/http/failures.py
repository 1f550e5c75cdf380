"""What the server under test logs as its own failure: no client may cause any."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Failures", "watching_failures"]

LOGGERS = ("", "mlserve", "uvicorn", "uvicorn.error", "asyncio")


class Failures(logging.Handler):
    """Keeps what was logged as an error, from any thread."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(f"{record.name}: {record.getMessage()} {record.exc_info}")

    def seen(self) -> list[str]:
        """Give what was logged since the last time, and forget it."""
        seen, self._texts = self._texts, []
        return seen


@contextmanager
def watching_failures() -> Iterator[Failures]:
    """Watch until the end of the block."""
    failures = Failures()
    watched = [logging.getLogger(name) for name in LOGGERS]
    for logger in watched:
        logger.addHandler(failures)
    try:
        yield failures
    finally:
        for logger in watched:
            logger.removeHandler(failures)
