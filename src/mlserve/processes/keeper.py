"""
Keeping one replica alive: its process is started, and again each time it ends.

Lives on the supervisor's event loop.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any, Protocol

from mlserve.errors import ConfigurationError
from mlserve.execution.backoff import backoff_s
from mlserve.lifecycle import UNLOAD_S
from mlserve.observability.loggers import get_logger
from mlserve.processes import messages
from mlserve.processes.board import Board, Cause
from mlserve.processes.frames import unpack
from mlserve.processes.logs import write_record
from mlserve.processes.process import ChildProcess
from mlserve.settings import Restart

__all__ = ["Keeper", "Owner", "ReplicaState"]

logger = get_logger(__name__)

_UNRESPONSIVE_S = 5.0
_LEAST_LOAD_S = 60.0
_MOST_LOADS = 10


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    LOADING = "loading"
    SERVING = "serving"
    BROKEN = "broken"
    """It lives, and fails on the handler's own examples."""
    RETIRING = "retiring"
    WAITING = "waiting"
    """It has ended, and is started again after a pause."""
    ENDED = "ended"


class Owner(Protocol):
    """The fleet, as a keeper sees it."""

    async def launch(self, number: int, process: ChildProcess) -> None:
        """Start the process of a replica."""

    def note_state(self, keeper: "Keeper") -> None:
        """Learn that a replica's state has changed."""

    def note_progress(self, number: int, fraction: float, note: str) -> None:
        """Learn how far its load has come."""

    def note_warming(self) -> None:
        """Learn that it was loaded."""


class _LoadError(Exception):
    """Loading raised; what it raised is the cause."""


class Keeper:
    """
    One replica of a fleet, over all the processes that it has in its life.

    Args:
        number: Its number.
        owner: The fleet.
        board: Where its figures stand.
        restart: How often and how fast it is started again.
        model: The model's name, for the log.
        is_idempotent: Whether its requests may be run twice.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self,
        number: int,
        owner: Owner,
        board: Board,
        restart: Restart,
        model: str,
        *,
        is_idempotent: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = number
        self.state = ReplicaState.LOADING
        self.reason: str | None = None
        """Why its last process ended; never an exception's text."""
        self.n_failures = 0
        """How many processes in a row have ended without having served."""
        self.load_s = 0.0
        """How long the last load took, in seconds."""
        self.process: ChildProcess | None = None
        self.introduced: set[int] = set()
        """The HTTP processes that its process is connected with."""
        self.n_lost: Counter[int] = Counter()
        """How often the way from an HTTP process to its process has ended."""
        self.warned_at = -math.inf
        """When it was last logged that an HTTP process could not be connected with its process."""
        self.first_load: asyncio.Future[int]
        """With how many examples it was warmed up, once it was loaded for the first time."""
        self._owner = owner
        self._board = board
        self._row = board.replicas[number]
        self._restart = restart
        self._about = {"model": model, "replica": number}
        self._is_idempotent = is_idempotent
        self._clock = clock
        self._loaded: asyncio.Future[int]
        self._unwanted = asyncio.Event()
        self._n_answered = 0.0
        self._beat, self._beat_at = -1.0, 0.0
        self.first_load = asyncio.get_running_loop().create_future()

    @property
    def is_given_up(self) -> bool:
        """Whether it has failed so often that nobody should wait for it."""
        return self.n_failures >= self._restart.failures

    @property
    def is_wanted(self) -> bool:
        """Whether it is to go on."""
        return not self._unwanted.is_set()

    @property
    def takes_clients(self) -> bool:
        """Whether HTTP processes may be connected with its process."""
        return self.state is ReplicaState.SERVING and self.is_wanted

    async def keep(self, load_timeout_s: Callable[[], float | None]) -> None:
        """Run processes until it is not wanted any more."""
        try:
            while True:
                await self._live(self._load_bound_s(load_timeout_s()))
                if not self._unwanted.is_set() and (pause_s := self._pause_s()) > 0:
                    self._move(ReplicaState.WAITING)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._unwanted.wait(), pause_s)
                if self._unwanted.is_set():
                    return
        finally:
            self._move(ReplicaState.ENDED)

    async def stop(self) -> None:
        """Have it unload and end; the process is left if this is cancelled."""
        self._unwanted.set()
        if (process := self.process) is not None:
            process.send(messages.STOP)
            await asyncio.shield(process.exited)

    def retire(self, reason: str) -> None:
        """Have it finish what runs, unload and end; it does not come back."""
        self._unwanted.set()
        if self.process is not None:
            self.process.send(messages.RETIRE, reason)

    def watch(self, now: float) -> None:
        """Look whether its process hangs, and kill it then."""
        process, row = self.process, self._row
        if process is None or not process.is_alive or self.state is ReplicaState.LOADING:
            return
        if row.beat != self._beat or row.kill_at > 0:
            self._beat, self._beat_at = row.beat, now
        if 0 < row.kill_at < now:
            self._row.cause = Cause.HANG
            self.kill("a hook did not return in time")
        elif now - self._beat_at > _UNRESPONSIVE_S:
            self._row.cause = Cause.HANG
            self.kill("it does not respond")

    def kill(self, reason: str) -> None:
        """End its process, which another one follows."""
        if self.process is not None and self.process.is_alive:
            self.reason = f"replica {self.number} is being restarted: {reason}"
            logger.error("replica.killed", extra={**self._about, "reason": reason})
            self.process.kill()

    def skip_watch(self, now: float) -> None:
        """Begin to watch anew: nobody has looked for a while, and it may have stood still, too."""
        self._beat_at = now

    async def _live(self, load_timeout_s: float | None) -> None:
        """Run one process from its start to its end."""
        started = self._clock()
        self._move(ReplicaState.LOADING)
        self._loaded = asyncio.get_running_loop().create_future()
        self.introduced.clear()
        self.n_lost.clear()
        self._n_answered = self._row.answered
        try:
            process = ChildProcess(self._listen)
        except OSError as exc:  # there is no further descriptor
            self._note_failed_load(exc)
            return
        self.process = process
        try:
            try:
                async with asyncio.timeout(load_timeout_s):
                    await self._owner.launch(self.number, process)
                    n_examples = await self._first(self._loaded, process)
            except Exception as exc:  # noqa: BLE001 - whatever loading raised
                self._note_failed_load(exc)
                if isinstance(exc, _LoadError):  # it unloads and ends by itself
                    await asyncio.wait((process.exited,), timeout=UNLOAD_S)
                return
            self.load_s = self._clock() - started
            self._beat_at = self._clock()
            self._move(ReplicaState.SERVING)
            if not self.first_load.done():
                self.first_load.set_result(n_examples)
            elif self.reason is not None:
                logger.warning("replica.restart.completed", extra=self._about)
            self._note_end(await asyncio.shield(process.exited))
            self._row.clear()
        finally:
            self.process = None
            await process.end()

    def _load_bound_s(self, load_timeout_s: float | None) -> float | None:
        """Say how long a load may take: one that has loaded before should do so again."""
        if load_timeout_s is None and self.load_s:
            return max(_LEAST_LOAD_S, _MOST_LOADS * self.load_s)
        return load_timeout_s

    async def _first(self, loaded: "asyncio.Future[int]", process: ChildProcess) -> int:
        """Wait until a process is loaded, or raise why it will not be."""
        await asyncio.wait((loaded, process.exited), return_when=asyncio.FIRST_COMPLETED)
        if loaded.done():
            return loaded.result()
        raise RuntimeError(
            f"The process of replica {self.number} ended while it was loading"
            f" ({_end_of(process.exited.result())})."
        )

    def _note_failed_load(self, error: Exception) -> None:
        if self._unwanted.is_set():  # it was ended while it was loading
            return
        self.n_failures += 1
        first = self.first_load
        if first.done() and not first.cancelled():  # else who has started the fleet is told
            self.reason = f"replica {self.number} could not be loaded"
        if isinstance(error, _LoadError):
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
            is_final = True  # it would raise again
        else:
            is_final = self.is_given_up or isinstance(error, ConfigurationError)
        extra = {**self._about, "attempt": self.n_failures}
        if not self.first_load.done() and is_final:
            self.first_load.set_exception(error)
            self.first_load.exception()  # whoever started the fleet may have left
            self._unwanted.set()
        else:
            logger.error("replica.load.failed", exc_info=error, extra=extra)

    def _note_end(self, code: int) -> None:
        """Judge the end of a process that was loaded."""
        self._note_answers()
        if self.state is ReplicaState.RETIRING:
            logger.info("replica.retired", extra={**self._about, "reason": self.reason})
            return
        if self._unwanted.is_set():
            return
        n_running = self._board.n_running(self.number)
        if n_running != 1:  # else one request did it, which will be found out
            self._count_failure(is_answered=n_running > 0 and not self._is_idempotent)
        if self._row.cause != Cause.HANG:
            self.reason = f"replica {self.number} has died and is being restarted"
        extra = {**self._about, "end": _end_of(code), "running": n_running}
        logger.error("replica.died", extra=extra)

    def _count_failure(self, *, is_answered: bool) -> None:
        """Count an end; those that have told requests of it are never too many."""
        most = max(self.n_failures, self._restart.failures - 1) if is_answered else math.inf
        self.n_failures = int(min(self.n_failures + 1, most))

    def _note_answers(self) -> None:
        """Forgive what was before if this process has answered anything."""
        if self._row.answered > self._n_answered:
            self.n_failures = 0

    def _pause_s(self) -> float:
        """Say how long to wait before the next process, in seconds."""
        if self.n_failures <= 1:
            return 0.0
        if self.is_given_up:
            return self._restart.max_backoff_s
        return backoff_s(self.n_failures - 2, self._restart.backoff_s, self._restart.max_backoff_s)

    def _listen(self, received: list[tuple[Any, ...]]) -> None:
        for message in received:
            self._hear(*message)

    def _hear(self, kind: int, *facts: Any) -> None:
        if kind == messages.LOG:
            self._write(facts[0])
        elif kind == messages.PROGRESS:
            self._owner.note_progress(self.number, *facts)
        elif kind == messages.WARMING:
            self._owner.note_warming()
        elif kind == messages.READY:
            if not self._loaded.done():
                self._loaded.set_result(facts[0])
        elif kind == messages.FAILED:
            self._note_raised(*facts)
        elif kind == messages.RETIRING:
            self.reason = f"replica {self.number} is being restarted ({facts[0]})"
            self._note_answers()
            self._move(ReplicaState.RETIRING)
        elif kind == messages.BROKEN:
            self.reason = f"replica {self.number} fails on the handler's own examples"
            self._move(ReplicaState.BROKEN)
        elif kind == messages.MENDED:
            self._move(ReplicaState.SERVING)

    def _write(self, packed: Any) -> None:
        try:
            write_record(unpack(packed))
        except Exception:  # it holds what only the replica can make
            logger.exception("replica.log.unreadable", extra=self._about)

    def _note_raised(self, packed: Any, text: str) -> None:
        if self._loaded.done():
            return
        try:
            error = unpack(packed)
        except Exception:  # noqa: BLE001 - it is of a module that only the replica finds
            error = RuntimeError("The process of a replica raised what cannot enter this one.")
        failed = _LoadError()
        failed.__cause__ = error
        error.add_note(f"In the process of replica {self.number}:\n{text}")
        self._loaded.set_exception(failed)

    def _move(self, state: ReplicaState) -> None:
        self.state = state
        self._owner.note_state(self)

    def __repr__(self) -> str:
        return f"<Keeper of replica {self.number}: {self.state}>"


def _end_of(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
