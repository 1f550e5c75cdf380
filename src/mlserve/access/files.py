"""A small file of configuration that is read again when it changes."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from mlserve.errors import ConfigurationError
from mlserve.observability.loggers import get_logger

__all__ = ["WatchedFile"]

logger = get_logger(__name__)

ValueT = TypeVar("ValueT")

_PERIOD_S = 1.0
_MAX_BYTES = 2**20


class WatchedFile(Generic[ValueT]):
    """
    What stands in a file; looked at once a second at most. Any thread.

    A file that cannot be read or parsed any more is logged once, and what it said before stays.

    Args:
        path: The file; links are followed, so that what they point to may be swapped.
        parse: Makes the value of its text; raises a `ConfigurationError`.
        clock: Gives seconds.

    Raises:
        ConfigurationError: If it cannot be read or parsed.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[str], ValueT],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._parse = parse
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._value = self._read()
        self._look_at = clock() + _PERIOD_S

    def current(self) -> ValueT:
        """Give what it says."""
        if self._clock() >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._value

    def _look(self) -> None:
        self._look_at = self._clock() + _PERIOD_S
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._value = self._read()
        except ConfigurationError as exc:
            logger.error("file.reload.failed", extra={"file": str(self._path), "reason": str(exc)})
        else:
            logger.info("file.reload.completed", extra={"file": str(self._path)})

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev

    def _read(self) -> ValueT:
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            # Not with its name: who confuses arguments may have given a key in its place.
            raise ConfigurationError(
                f"The file cannot be read ({type(exc).__name__}). It must be there, readable and"
                " UTF-8."
            ) from None
        if len(data) > _MAX_BYTES:
            raise ConfigurationError(f"The file is larger than {_MAX_BYTES} bytes.")
        return self._parse(text)

    def __repr__(self) -> str:
        return f"<WatchedFile {str(self._path)!r}>"
