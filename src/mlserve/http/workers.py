"""
Serving HTTP with several processes that share the replicas: the side of their supervisor.

The supervisor serves nothing itself. It owns the socket and the replicas in processes, starts the
HTTP processes, and starts one again that has ended. Everything here runs on its event loop.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mlserve.execution.backoff import backoff_s
from mlserve.execution.worker import TaskSet
from mlserve.http.found import Find
from mlserve.http.guards.warning import warn_if_open
from mlserve.http.runner import STARTUP_FAILURE, STOPPING, configure_logging
from mlserve.http.tally import Tally
from mlserve.lifecycle import UNLOAD_S
from mlserve.observability.exposition import VARIABLE as SHARED_METRICS
from mlserve.observability.exposition import shared_directory
from mlserve.observability.log_queue import queued_logging
from mlserve.observability.loggers import get_logger
from mlserve.processes import messages
from mlserve.processes.boot import boot_bytes, main_module, require_main
from mlserve.processes.process import ChildProcess
from mlserve.processes.sharing import BEAT_S, OwnedFleet
from mlserve.registry import Registry
from mlserve.settings import ServerSettings
from mlserve.spec import ModelSpec

__all__ = ["WorkerBoot", "run_workers"]

logger = get_logger(__name__)

_HURRIED_UNLOAD_S = 1.0
_MAX_MISSED_BEATS = 30
_STABLE_S = 60.0
_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBoot:
    """What an HTTP process has to know before it can begin."""

    index: int
    """Its number."""
    n_workers: int
    """How many there are."""
    find: Find
    """Gives what it is to serve."""
    main: dict[str, Any]
    """How to find the modules that the supervisor finds."""
    n_sockets: int
    """How many of its descriptors are sockets to listen on, after the tally and before boards."""
    fleets: tuple[tuple[str, str, int], ...]
    """Of which models they are: name, version and how many replicas there may be."""
    log_level: str
    """The level of mlserve's and uvicorn's loggers."""
    timeout_keep_alive_s: int
    """After how many idle seconds a connection is closed."""


def run_workers(
    find: Find,
    registry: Registry | None,
    *,
    workers: int,
    host: str,
    port: int,
    log_level: str,
    timeout_keep_alive_s: int,
) -> None:
    """
    Serve with several HTTP processes until SIGINT or SIGTERM.

    Exits the process with 3 if the start fails or, with `on_load_failure="exit"`, a model fails
    to load later.

    Args:
        find: Imports what is to be served, here and in each of the processes.
        registry: What of it are our models.
        workers: How many processes.
        host: The address to listen on.
        port: The port to listen on.
        log_level: The level of mlserve's and uvicorn's loggers.
        timeout_keep_alive_s: After how many idle seconds a connection is closed.

    Raises:
        ConfigurationError: If a process of a server does so that only imports its main module, or
            a replica's process could not find its handler.
    """
    require_main()
    configure_logging(log_level)
    warn_if_open(host, registry)
    boot = WorkerBoot(
        index=0,
        n_workers=workers,
        find=find,
        main=main_module(boot_bytes(find)),
        n_sockets=0,
        fleets=(),
        log_level=log_level,
        timeout_keep_alive_s=timeout_keep_alive_s,
    )

    async def run() -> bool:
        supervisor = _Supervisor(boot, registry)
        await supervisor.run(host, port)
        return supervisor.has_failed

    with queued_logging("mlserve", "uvicorn"):
        has_failed = asyncio.run(run())
    if has_failed:
        sys.exit(STARTUP_FAILURE)


class _Supervisor:
    """
    Keeps the HTTP processes and the replicas.

    Args:
        boot: What an HTTP process is told, but for what is not known yet.
        registry: The models; nothing is loaded here.
    """

    def __init__(self, boot: WorkerBoot, registry: Registry | None) -> None:
        self.has_failed = False
        self.ending = asyncio.Event()
        """Set once the server ends."""
        self._boot = boot
        self._settings = registry.settings if registry is not None else ServerSettings()
        self._fleets: list[OwnedFleet] = []
        self._in_threads: list[str] = []
        for model in registry or ():
            spec = model.engine.spec
            if spec.replicas.placement == "process":
                self._fleets.append(self._own(spec))
            else:
                self._in_threads.append(f"`{spec.name}`")
        self._workers = [_Worker(index, self) for index in range(boot.n_workers)]
        self._tally, self._tally_fd = Tally.create(boot.n_workers)
        self._listener: asyncio.Server | None = None
        self._n_signals = 0
        self._has_served = False

    async def run(self, host: str, port: int) -> None:
        """Serve until a signal or a failed start."""
        loop = asyncio.get_running_loop()
        try:
            # It is bound here, and listened to once there is somebody who serves.
            self._listener = await loop.create_server(
                asyncio.Protocol, host, port, start_serving=False
            )
        except OSError as exc:
            self.fail(f"{exc}.")
            return
        self._warn_of_copies()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._note_signal, number)
        tasks = TaskSet()
        tasks.spawn(self._keep_watch())
        try:
            await asyncio.gather(*(worker.keep() for worker in self._workers))
        finally:
            await tasks.close()
            await self._close_fleets()

    def fds(self) -> tuple[int, ...]:
        """Give the descriptors that an HTTP process is given."""
        sockets = self._sockets()
        return (
            self._tally_fd,
            *(sock.fileno() for sock in sockets),
            *(fleet.board_fd for fleet in self._fleets),
        )

    def boot(self, index: int) -> bytes:
        """Give what an HTTP process is sent first."""
        fleets = tuple((*fleet.key, fleet.n_replicas) for fleet in self._fleets)
        n_sockets = len(self._sockets())
        return boot_bytes(replace(self._boot, index=index, n_sockets=n_sockets, fleets=fleets))

    def listen(self, worker: "_Worker", key: tuple[str, str]) -> None:
        """Tell an HTTP process of the replicas of a model."""
        for fleet in self._fleets:
            if fleet.key == key and worker.process is not None:
                fleet.listen(worker.index, worker.process)

    def note_lost(self, worker: "_Worker", key: tuple[str, str], number: int, pid: int) -> None:
        """Learn that the way from an HTTP process to a replica has ended."""
        for fleet in self._fleets:
            if fleet.key == key:
                fleet.note_lost(worker.index, number, pid)

    def leave(self, worker: "_Worker") -> None:
        """Forget an HTTP process that has ended."""
        self._tally.leave(worker.index)
        for fleet in self._fleets:
            fleet.leave(worker.index)

    def note_serving(self) -> None:
        """Say once that all HTTP processes serve."""
        if self._has_served or not all(worker.is_serving for worker in self._workers):
            return
        self._has_served = True
        for sock in self._sockets():
            host, port = sock.getsockname()[:2]
            logger.info(
                "Serving on http://%s:%s with %s HTTP processes (Ctrl+C ends it).",
                host,
                port,
                len(self._workers),
            )

    def fail(self, reason: str) -> None:
        """End the server, as it cannot do what it should."""
        if not self.ending.is_set():
            logger.critical("%s The server ends.", reason)
            self.has_failed = True
            self._end()

    def _own(self, spec: ModelSpec) -> OwnedFleet:
        return OwnedFleet(
            spec,
            self._boot.n_workers,
            load_timeout_s=self._settings.load_timeout_s,
            health_period_s=self._settings.health_period_s,
            on_failure=self._note_failed_load,
        )

    def _note_failed_load(self, spec: ModelSpec, error: Exception) -> bool:
        """Note that a model's replicas could not be loaded; say whether HTTP processes tell it."""
        if self._settings.on_load_failure == "serve":
            return True
        about = {"model": spec.name, "version": spec.version}
        logger.critical("model.load.failed", exc_info=error, extra=about)
        self.fail(f"A model could not be loaded: {error!r}.")
        return False

    def _note_signal(self, number: int) -> None:
        self._n_signals += 1
        if self._n_signals == 1:
            logger.info(STOPPING)
            if not self.ending.is_set():
                self._end()
                return
        elif self._n_signals > 2:  # the system ends the others with this one
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._tell_workers()

    def _end(self) -> None:
        self.ending.set()
        if self._listener is not None:
            # The last HTTP process that closes it is to be the last one that has it.
            self._listener.close()
        self._tell_workers()

    def _tell_workers(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.signal(signal.SIGTERM)

    def _sockets(self) -> tuple[socket.socket, ...]:
        return tuple(self._listener.sockets) if self._listener is not None else ()

    def _warn_of_copies(self) -> None:
        if self._in_threads:
            logger.warning(
                "Each of the %s HTTP processes loads a copy of %s: give it"
                " `replicas=Replicas(placement='process')` to load one that all of them share.",
                len(self._workers),
                ", ".join(self._in_threads),
            )

    async def _keep_watch(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for worker in self._workers:
                worker.look()

    async def _close_fleets(self) -> None:
        unload_s = max(_HURRIED_UNLOAD_S, min(self._settings.drain_s, UNLOAD_S))
        if self._n_signals > 1:
            unload_s = _HURRIED_UNLOAD_S
        await asyncio.gather(*(fleet.close(unload_s) for fleet in self._fleets))


class _Worker:
    """
    One HTTP process, over all the lives that it has.

    Args:
        index: Its number.
        supervisor: Who keeps it.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self, index: int, supervisor: _Supervisor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.index = index
        self.process: ChildProcess | None = None
        self.is_serving = False
        """Whether it takes connections."""
        self._supervisor = supervisor
        self._clock = clock
        self._has_served = False
        self._n_lives = 0
        self._n_short = 0
        self._n_missed = 0

    async def keep(self) -> None:
        """Run processes until the server ends."""
        ending = self._supervisor.ending
        while not ending.is_set():
            began = self._clock()
            code = await self._live()
            if ending.is_set():
                return
            if self._n_lives == 1 and (
                code == STARTUP_FAILURE or (code > 0 and not self._has_served)
            ):
                self._supervisor.fail(f"An HTTP process could not start (exit code {code}).")
                return
            self._n_short = 0 if self._clock() - began > _STABLE_S else self._n_short + 1
            await self._pause()

    def look(self) -> None:
        """Look whether its event loop turns; kill it when it has not for long."""
        if self.process is None or not self.is_serving:
            return
        self._n_missed += 1
        if self._n_missed > _MAX_MISSED_BEATS:
            logger.error("worker.killed", extra={"worker": self.index, "pid": self.process.pid})
            self.process.kill()

    async def _live(self) -> int:
        """Run one process from its start to its end, and give its exit code."""
        self._n_lives += 1
        try:
            code = await self._run()
        except OSError as exc:  # the system gives no further process or descriptor
            logger.error("worker.start.failed", exc_info=exc, extra={"worker": self.index})
            code = -1
        return code

    async def _run(self) -> int:
        supervisor = self._supervisor
        self.process = process = ChildProcess(self._hear)
        self._n_missed = 0
        try:
            environment = os.environ | {SHARED_METRICS: shared_directory()}
            await process.run(
                "mlserve.http.worker", supervisor.boot(self.index), supervisor.fds(), environment
            )
            code = await asyncio.shield(process.exited)
        finally:
            self.process = None
            self.is_serving = False
            await process.end()
            supervisor.leave(self)
        if not supervisor.ending.is_set():
            facts = {"worker": self.index, "pid": process.pid, "exit_code": code}
            logger.error("worker.died", extra=facts)
        return code

    async def _pause(self) -> None:
        """Wait before the next process, unless the server ends."""
        try:
            async with asyncio.timeout(_pause_s(self._n_short)):
                await self._supervisor.ending.wait()
        except TimeoutError:
            return

    def _hear(self, received: list[tuple[Any, ...]]) -> None:
        for kind, *facts in received:
            self._n_missed = 0
            if kind == messages.LISTEN:
                self._supervisor.listen(self, (facts[0], facts[1]))
            elif kind == messages.LOST:
                self._supervisor.note_lost(self, (facts[0], facts[1]), *facts[2:])
            elif kind == messages.SERVING:
                self.is_serving = self._has_served = True
                self._supervisor.note_serving()

    def __repr__(self) -> str:
        return f"<_Worker {self.index}: {self.process!r}>"


def _pause_s(n_short: int) -> float:
    """Say how long to wait after so many short lives in a row, in seconds; pure."""
    return 0.0 if n_short <= 1 else backoff_s(n_short - 2, _PAUSE_S, _MAX_PAUSE_S)
