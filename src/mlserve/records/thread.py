"""A thread for what must not run on the event loop, one call at a time."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from mlserve.execution.worker import Mailbox, Worker

__all__ = ["OwnThread"]

ResultT = TypeVar("ResultT")


class OwnThread:
    """
    A daemon thread, started when first needed; a function that hangs keeps no process alive.

    Args:
        name: Its name, as debuggers show it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._worker: Worker | None = None

    def open(self) -> None:
        """Take calls on the event loop that runs now."""
        self.close()
        self._worker = Worker(self._name, Mailbox(asyncio.get_running_loop()))

    async def call(self, function: Callable[[], ResultT]) -> ResultT:
        """
        Run a function in the thread and give what it returns or raises.

        Whoever is cancelled waits for the function all the same, so that no calls pile up behind
        one that hangs; cancelled once more, they leave it alone.

        Raises:
            RuntimeError: If it is not open, or the system gives no further thread.
        """
        if self._worker is None:
            raise RuntimeError("The thread is closed.")
        task = asyncio.get_running_loop().create_task(self._worker.call(function))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait((task,))
            raise
        finally:
            task.cancel()

    def close(self) -> None:
        """End the thread after what was called; does not wait for it."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
