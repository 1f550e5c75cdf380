"""Where the windows of all callers are kept: the protocol of a store, and the one in memory."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from mlserve.access.windows import Rate, Reading, Window
from mlserve.errors import ConfigurationError

__all__ = ["MemoryStore", "RateStore", "StoreError"]


class StoreError(Exception):
    """A store cannot be reached."""


@runtime_checkable
class RateStore(Protocol):
    """Keeps windows by key. Used on the event loop."""

    async def take(self, key: str, rate: Rate, *, needs: int, cost: int) -> Reading:
        """
        Take something of a key's window if there is room, as `Window.take` does.

        Raises:
            StoreError: If the store cannot be reached.
        """

    async def close(self) -> None:
        """Let go of connections; another `take` opens new ones."""


class MemoryStore:
    """
    Keeps windows in the memory of this process. Any thread.

    Args:
        max_keys: How many are kept; those that were asked for least recently are forgotten.
        clock: Gives seconds.

    Raises:
        ConfigurationError: If `max_keys` is less than 1.
    """

    def __init__(
        self, *, max_keys: int = 65_536, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if max_keys < 1:
            raise ConfigurationError(f"`max_keys` must be at least 1, got {max_keys!r}.")
        self._max_keys = max_keys
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: OrderedDict[str, Window] = OrderedDict()

    async def take(self, key: str, rate: Rate, *, needs: int, cost: int) -> Reading:
        """Take something of a key's window if there is room, as `Window.take` does."""
        return self.take_now(key, rate, needs=needs, cost=cost)

    def take_now(self, key: str, rate: Rate, *, needs: int, cost: int) -> Reading:
        """Do the same in any thread."""
        with self._lock:
            window = self._windows.get(key)
            if window is None:
                window = self._windows[key] = Window()
                if len(self._windows) > self._max_keys:
                    self._windows.popitem(last=False)
            else:
                self._windows.move_to_end(key)
            return window.take(rate, self._clock(), needs=needs, cost=cost)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    def __len__(self) -> int:
        return len(self._windows)

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self)} of {self._max_keys} keys>"
