"""Bringing the log of a replica's process to its supervisor, whose handlers then write it."""

import copy
import logging
from typing import Any

from mlserve.execution.worker import Mailbox
from mlserve.processes import messages
from mlserve.processes.frames import pack
from mlserve.processes.wire import Link

__all__ = ["LinkHandler", "log_levels", "write_record"]

_formatter = logging.Formatter()


class LinkHandler(logging.Handler):
    """
    Sends records to the supervisor. Any thread.

    While the supervisor takes none they are counted and dropped: a log must not fill the memory.

    Args:
        link: The way to the supervisor.
        mailbox: The way to the event loop, where the link lives.
    """

    def __init__(self, link: Link, mailbox: Mailbox) -> None:
        super().__init__()
        self._link = link
        self._mailbox = mailbox
        self._n_dropped = 0

    def install(self, levels: dict[str, int]) -> None:
        """Take every record of this process from the given levels upwards."""
        logging.getLogger().handlers[:] = [self]
        for name, level in levels.items():
            logging.getLogger(name or None).setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, as text where it would not survive the way. Raises nothing."""
        if self._link.is_congested:
            self._n_dropped += 1
            return
        try:
            if self._n_dropped:
                self._send(_note_on(self._n_dropped))
                self._n_dropped = 0
            self._send(record)
        except Exception:  # noqa: BLE001 - a handler's code must not fail as it has logged
            self.handleError(record)

    def _send(self, record: logging.LogRecord) -> None:
        try:
            packed = pack(_facts_of(record))
        except Exception:  # noqa: BLE001 - what stands in a record may be anything
            packed = pack(_plain_facts_of(record))
        self._mailbox.post(self._link.send, (messages.LOG, packed))


def log_levels() -> dict[str, int]:
    """Give the level of every logger of this process that has one, by name; `""` is the root."""
    levels = {"": logging.getLogger().level}
    for name, logger in list(logging.getLogger().manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    return levels


def write_record(facts: dict[str, Any]) -> None:
    """Give a record that a replica has sent to the handlers of this process."""
    record = logging.makeLogRecord(facts)
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _facts_of(record: logging.LogRecord) -> dict[str, Any]:
    prepared = copy.copy(record)
    prepared.msg, prepared.args = record.getMessage(), None
    if record.exc_info:
        prepared.exc_text = record.exc_text or _formatter.formatException(record.exc_info)
        prepared.exc_info = None
    return vars(prepared)


def _plain_facts_of(record: logging.LogRecord) -> dict[str, Any]:
    plain = logging.makeLogRecord({"name": record.name, "levelno": record.levelno})
    plain.levelname = record.levelname
    try:
        plain.msg = record.getMessage()
    except Exception as exc:  # noqa: BLE001 - its arguments do not fit it, or are broken themselves
        text = record.msg if isinstance(record.msg, str) else "A record that has no text"
        plain.msg = f"{text} ({type(exc).__name__} in its arguments)"
    return vars(plain)


def _note_on(n_dropped: int) -> logging.LogRecord:
    note = logging.makeLogRecord({"name": __name__, "levelno": logging.WARNING})
    note.levelname = "WARNING"
    note.msg = f"{n_dropped} log records of a replica were dropped: they came too fast."
    return note
