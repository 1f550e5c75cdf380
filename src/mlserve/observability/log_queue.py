"""
Logging that nobody waits for: records are queued, and written by a thread of their own.

A pipe that nobody reads or a handler that hangs or raises would otherwise stop the event loop, and
with it every answer.
"""

import copy
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import groupby
from logging.handlers import QueueHandler
from queue import Empty, SimpleQueue
from typing import Any, cast

from mlserve.observability.access_log import InferenceLogRecord, JsonFormatter, LineHandler

__all__ = ["QueuedHandler", "StderrHandler", "queued_logging", "stderr_handler"]

_CAPACITY = 10_000
_FLUSH_S = 2.0
_GATHER_S = 0.05
_formatter = logging.Formatter()


def stderr_handler() -> logging.Handler:
    """Give a handler that writes to stderr."""
    try:
        return StderrHandler(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # stderr is no file
        return logging.StreamHandler()


class StderrHandler(logging.Handler):
    """
    Writes lines to a file descriptor.

    Not by way of `sys.stderr`: while a thread hangs in its buffer the interpreter cannot end.

    Args:
        fd: The descriptor; it stays open.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, waiting for the reader; if there is none any more the line is lost."""
        self._write_all(self._line(record))

    def handle_all(self, records: Iterable[logging.LogRecord | str]) -> None:
        """
        Write several lines at once: each write wakes the reader, and lets other threads run.

        As many as a pipe takes in one piece: other processes may write to it as well.

        Args:
            records: The records, or lines that were written already.
        """
        with self.lock or nullcontext():
            data = b""
            for piece in self._pieces(records):
                if len(data) + len(piece) > select.PIPE_BUF:
                    self._write_all(data)
                    data = b""
                data += piece
            self._write_all(data)

    def _pieces(self, records: Iterable[logging.LogRecord | str]) -> Iterator[bytes]:
        for kind, group in groupby(records, type):
            if kind is str:
                lines = "\n".join(cast("Iterable[str]", group))
                yield from _cut(f"{lines}\n".encode(), select.PIPE_BUF)
            else:
                found = cast("Iterable[logging.LogRecord]", group)
                yield from (self._line(record) for record in found if self._wants(record))

    def _wants(self, record: logging.LogRecord) -> bool:
        try:
            return bool(self.filter(record))
        except Exception:  # noqa: BLE001 - a filter that breaks must not end the log
            return False

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            line = self.format(record)
        except Exception as exc:  # noqa: BLE001 - what stands in a record may be anything
            line = f"{record.levelname} {record.name}: log.format.failed {type(exc).__name__}"
        return f"{line}\n".encode(errors="backslashreplace")

    def _write_all(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._write(data) :]
        except OSError:
            return

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:  # whoever made the pipe made it so
            select.select([], [self._fd], [])
            return 0


def _cut(lines: bytes, most: int) -> Iterator[bytes]:
    """Cut lines into pieces of so many bytes at most, or of one line that is longer."""
    start = 0
    while len(lines) - start > most:
        stop = lines.rfind(b"\n", start, start + most) + 1 or lines.find(b"\n", start) + 1
        yield lines[start:stop]
        start = stop
    yield lines[start:]


class QueuedHandler(QueueHandler, LineHandler):
    """
    Stands before a handler and gives it the records in a thread of its own.

    A record that finds the queue full is dropped; once half of it is free again, one line says
    how many were.

    Args:
        handler: The handler.
        capacity: How many records may wait.
    """

    def __init__(self, handler: logging.Handler, capacity: int = _CAPACITY) -> None:
        # Unlike `Queue`, a `SimpleQueue` may be used by a signal handler amid a use of it.
        self._records: SimpleQueue[logging.LogRecord | str | None] = SimpleQueue()
        super().__init__(self._records)
        self.setLevel(handler.level)
        self._handler = handler
        self._is_stderr = isinstance(handler, StderrHandler)
        self._capacity = capacity
        self._n_dropped = 0  # guarded by the handler's lock, in which records are queued
        self._listener = _Listener(self._records, handler)
        self._listener.start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Make the text of what may change or weigh much by the time it is written."""
        if isinstance(record, InferenceLogRecord):
            return record
        prepared = copy.copy(record)
        prepared.msg, prepared.args = record.getMessage(), None
        if record.exc_info:
            prepared.exc_text = record.exc_text or _formatter.formatException(record.exc_info)
            prepared.exc_info = None
        return prepared

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a record if there is room."""
        if self._has_room():
            self._records.put(record)

    def line_formatter(self) -> JsonFormatter | None:
        """Give what writes lines for the handler, where that is all that becomes of a record."""
        handler = self._handler
        if not self._is_stderr or self.filters or handler.filters or self.level > logging.INFO:
            return None
        formatter = handler.formatter
        return formatter if type(formatter) is JsonFormatter else None

    def take_lines(self, lines: Sequence[str]) -> None:
        """Queue those lines that there is room for."""
        put = self._records.put
        if not self._n_dropped and self._records.qsize() + len(lines) <= self._capacity:
            for line in lines:
                put(line)
            return
        with self.lock or nullcontext():
            for line in lines:
                if self._has_room():
                    put(line)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Count a record without a text as dropped; the library would write to stderr here."""
        self._n_dropped += 1

    def finish(self) -> None:
        """Have the thread end once it has written what is queued; does not wait for it."""
        self.acquire()
        try:
            self._say_dropped()
        finally:
            self.release()
        self._listener.finish()

    def wait(self, timeout_s: float) -> bool:
        """
        Wait for the thread's end.

        Args:
            timeout_s: How long, in seconds.

        Returns:
            Whether all was written.
        """
        return self._listener.wait(timeout_s)

    def _has_room(self) -> bool:
        room = self._capacity // 2 if self._n_dropped else self._capacity
        if self._records.qsize() >= room:
            self._n_dropped += 1
            return False
        self._say_dropped()
        return True

    def _say_dropped(self) -> None:
        if self._n_dropped:
            facts = {
                "name": __name__,
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": "log.lines.dropped",
                "n_dropped": self._n_dropped,
            }
            self._n_dropped = 0
            self._records.put(logging.makeLogRecord(facts))


class _Listener:
    """
    The thread that writes; outlives what its handler raises, and is not waited for for ever.

    It writes what has gathered since it looked last: waking it for each record would stop the
    event loop each time.
    """

    def __init__(
        self, records: "SimpleQueue[logging.LogRecord | str | None]", handler: Any
    ) -> None:
        self._records = records
        self._handler = handler
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlserve-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        self._records.put(None)
        self._is_ending.set()

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            self._is_ending.wait(_GATHER_S)
            records = [record, *self._waiting()]
            ends = None in records
            self._handle([record for record in records if record is not None])
            if ends:
                return

    def _waiting(self) -> Iterator[logging.LogRecord | str | None]:
        with suppress(Empty):
            while True:
                yield self._records.get_nowait()

    def _handle(self, records: list[logging.LogRecord | str]) -> None:
        if isinstance(self._handler, StderrHandler):
            self._handler.handle_all(records)
            return
        for record in records:
            with suppress(Exception):  # there is no other place to tell it to
                self._handler.handle(record)


@contextmanager
def queued_logging(*names: str) -> Iterator[None]:
    """
    Put a queue before each handler of some loggers and of all below them.

    On leaving, what is queued is written for at most two seconds; the handlers are put back where
    that was enough.

    Args:
        names: The loggers' names.
    """
    queued: dict[logging.Handler, QueuedHandler] = {}
    places = [(logger, handler) for logger in _family(names) for handler in logger.handlers]
    for logger, handler in places:
        if handler not in queued:
            queued[handler] = QueuedHandler(handler)
        _exchange(logger, handler, queued[handler])
    try:
        yield
    finally:
        for before in queued.values():
            before.finish()
        end = time.monotonic() + _FLUSH_S
        written = {
            handler
            for handler, before in queued.items()
            if before.wait(max(0.0, end - time.monotonic()))
        }
        for logger, handler in places:
            if handler in written:
                _exchange(logger, queued[handler], handler)
        for handler in queued.keys() - written:
            # Its thread hangs and holds its lock, which `logging.shutdown` takes at the exit.
            handler.createLock()


def _family(names: tuple[str, ...]) -> list[logging.Logger]:
    known = logging.root.manager.loggerDict
    return [
        logger
        for name, logger in list(known.items())
        if isinstance(logger, logging.Logger)
        and any(name == root or name.startswith(f"{root}.") for root in names)
    ]


def _exchange(logger: logging.Logger, old: logging.Handler, new: logging.Handler) -> None:
    if old in logger.handlers:  # the application may have taken it away
        logger.removeHandler(old)
        logger.addHandler(new)
