"""A model whose replicas are in processes, for as long as a test or a module needs it."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mlserve import Model, ModelServer, Replicas, Restart, ServerSettings
from mlserve.processes.fleet import Fleet
from mlserve.processes.keeper import Keeper
from mlserve.processes.lane import RemoteLane

ResultT = TypeVar("ResultT")

WAIT_S = 15.0
QUICK = Restart(backoff_s=0.01, max_backoff_s=0.05)


class Served:
    """
    A model that is loaded, on an event loop that turns while `run` waits for something.

    Args:
        runner: The event loop.
        model: The model.
    """

    def __init__(self, runner: asyncio.Runner, model: Model) -> None:
        self.model = model
        self._runner = runner

    @property
    def fleet(self) -> Fleet:
        lane = self.model.engine._lane
        assert isinstance(lane, RemoteLane)
        fleet = lane._fleet
        assert isinstance(fleet, Fleet)
        return fleet

    @property
    def keeper(self) -> Keeper:
        return self.fleet._keepers[0]

    def pid(self, number: int = 0) -> int:
        process = self.fleet._keepers[number].process
        return process.pid if process is not None else 0

    def kill(self, number: int = 0, sig: int = signal.SIGKILL) -> int:
        pid = self.pid(number)
        os.kill(pid, sig)
        return pid

    def ready(self) -> "Served":
        """Wait until it answers, whatever a test before has done to it."""
        self.ask("")
        return self

    def run(self, scenario: Coroutine[Any, Any, ResultT]) -> ResultT:
        return self._runner.run(asyncio.wait_for(scenario, WAIT_S))

    def ask(self, request: Any, **options: Any) -> Any:
        """Give the answer to one request, or raise why there is none."""
        return self.run(self.model.predict(request, **options))

    def ask_all(self, requests: list[Any], **options: Any) -> list[Any]:
        """Send requests at the same moment, and give their answers or errors, in order."""
        return self.run(self.gather(requests, **options))

    async def gather(self, requests: list[Any], **options: Any) -> list[Any]:
        answers = (self.model.predict(request, **options) for request in requests)
        return await asyncio.gather(*answers, return_exceptions=True)

    def read(self, request: Any, **options: Any) -> tuple[list[Any], BaseException | None]:
        """Give the chunks of a stream, and what ended it before its end."""
        return self.run(read(self.model, request, **options))

    def wait(self, condition: Callable[[], bool]) -> None:
        """Let the event loop turn until a condition holds."""
        self.run(until(condition))


async def read(
    model: Model, request: Any, **options: Any
) -> tuple[list[Any], BaseException | None]:
    chunks = []
    try:
        async for chunk in model.stream(request, **options):
            chunks.append(chunk)  # noqa: PERF401 - what came before the error counts, too
    except Exception as exc:
        return chunks, exc
    return chunks, None


async def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait on the event loop until a condition holds that only looking at it can tell."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.002)


def begin(awaitable: Awaitable[ResultT]) -> "asyncio.Task[ResultT]":
    async def body() -> ResultT:
        return await awaitable

    return asyncio.get_running_loop().create_task(body())


@contextmanager
def served(
    handler: Any,
    *,
    restart: Restart = QUICK,
    settings: ServerSettings | None = None,
    replicas: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[Served]:
    """
    Serve a handler from processes, and stop it.

    Args:
        handler: What `ModelServer.add` takes.
        restart: How fast replicas come back.
        settings: The server's.
        replicas: Further options of `Replicas`.
        **options: Further options of `ModelServer.add`.
    """
    placed = Replicas(placement="process", restart=restart, **(replicas or {}))
    server = ModelServer(settings=settings).add("m", handler, replicas=placed, **options)
    with asyncio.Runner() as runner:
        started = server.started()
        runner.run(started.__aenter__())
        try:
            yield Served(runner, server.model_for("m"))
        finally:
            runner.run(started.__aexit__(None, None, None))
