"""
Threads of our own, and the way back from them to the event loop.

A worker's thread is a daemon: a hook that never returns must not keep the process alive.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, TypeVar

from mlserve.errors import MLServeError, ModelError
from mlserve.observability.loggers import get_logger

__all__ = ["Mailbox", "TaskSet", "Worker"]

logger = get_logger(__name__)

ResultT = TypeVar("ResultT")


class Mailbox:
    """
    Brings calls from other threads to the event loop, with one wake-up for all that gathered.

    Args:
        loop: The event loop that runs the calls, in the order in which they were posted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_scheduled = False

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Have `function(*args)` called on the event loop. Any thread; never blocks."""
        self._calls.append((function, args))
        if not self._is_scheduled:
            self._is_scheduled = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                logger.debug("The event loop is closed: a late result is dropped.")

    def catch_up(self) -> None:
        """Make the calls that wait now, before their turn of the loop. Event loop only."""
        if self._calls:
            self._deliver()

    def _deliver(self) -> None:
        # Cleared first: whoever posts from here on schedules another delivery.
        self._is_scheduled = False
        while self._calls:
            function, args = self._calls.popleft()
            try:
                function(*args)
            except Exception:
                logger.exception("mailbox.deliver.failed")


class Worker:
    """
    One thread that runs what it is given, in order; started when first needed.

    Args:
        name: The thread's name, as debuggers show it.
        mailbox: The way back to the event loop.
    """

    def __init__(self, name: str, mailbox: Mailbox) -> None:
        self._name = name
        self._mailbox = mailbox
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """
        Run `task`, which should not raise, after those submitted before. Event loop only.

        Raises:
            RuntimeError: If the system gives no further thread; the next task asks for it again.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread  # only now: nobody would run what is queued
        self._tasks.put(task)

    def go_on_with(self, task: Callable[[], None]) -> None:
        """Run `task` after those submitted before. Called by a task, in the thread."""
        self._tasks.put(task)

    def submit_or(self, task: Callable[[], None], fail: Callable[[MLServeError], None]) -> None:
        """Run `task` as `submit` does; `fail` is called on the event loop if that cannot be."""
        if self._thread is not None:
            self._tasks.put(task)
            return
        try:
            self.submit(task)
        except RuntimeError:  # the system gives no further thread
            logger.exception("thread.start.failed", extra={"worker": self._name})
            self._mailbox.post(fail, ModelError())

    async def call(self, function: Callable[[], ResultT]) -> ResultT:
        """Run `function` in the thread and give what it returns or raises."""
        future: asyncio.Future[ResultT] = self._mailbox.loop.create_future()

        def task() -> None:
            try:
                value = function()
            except BaseException as exc:  # noqa: BLE001 - user code may raise anything
                self._mailbox.post(_fail, future, exc)
            else:
                self._mailbox.post(_resolve, future, value)

        self.submit(task)
        return await future

    def close(self) -> None:
        """End the thread after what was submitted; does not wait for it."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread = None

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except BaseException:
                logger.exception("worker.task.failed")
            del task  # must not keep a batch's tensors alive while the thread is idle


class TaskSet:
    """Tasks on the event loop with an owner that ends them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    async def wait(self) -> None:
        """Wait until nothing runs any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Cancel what still runs."""
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """Cancel what still runs and wait for it."""
        tasks = list(self._tasks)
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("task.run.failed", exc_info=error)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration) or not isinstance(error, Exception):
        error = RuntimeError(f"A hook raised {type(error).__name__}.")  # futures cannot carry it
    future.set_exception(error)
