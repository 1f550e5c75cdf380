"""
The main program of a replica's process; `process` starts it.

It is given the number of its supervisor's process and three descriptors: the socket of the
supervisor, the one by which further sockets are passed in, and the memory of the board. It loads
its handler, says that it is ready, serves whoever it is given a socket of, and ends when it is told
to, or with its supervisor.
"""

import asyncio
import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

from mlserve.contract import read_contract
from mlserve.errors import ConfigurationError, ReplicaDiedError
from mlserve.execution.pool import ReplicaPool
from mlserve.execution.thread import OnReport
from mlserve.execution.worker import Mailbox, TaskSet
from mlserve.handler import Context
from mlserve.lane import Lane
from mlserve.lifecycle import UNLOAD_S
from mlserve.observability.loggers import get_logger
from mlserve.observability.tracing import configure_export
from mlserve.processes import messages
from mlserve.processes.board import Board, Cause
from mlserve.processes.boot import IN_REPLICA, Boot, read_boot
from mlserve.processes.host import Host
from mlserve.processes.logs import LinkHandler
from mlserve.processes.memory import resident_bytes
from mlserve.processes.parent import end_at_once, inherit
from mlserve.processes.watched import Watch, WatchedPipeline, WatchedReplica
from mlserve.processes.wire import LAST_WORDS_S, Link, connect, recv_socket
from mlserve.settings import Limits, Replicas
from mlserve.spec import Factory, ModelSpec

__all__ = ["main"]

logger = get_logger(__name__)

_BEAT_S = 0.25
_DEVICE_BROKEN = 70


class ReplicaProcess:
    """
    This process: one replica, from its load to its end.

    Args:
        boot: What it is to be.
        board: Where its figures stand.
        control: The supervisor's socket.
        door: The socket by which those of HTTP processes are passed in.
    """

    def __init__(
        self, boot: Boot, board: Board, control: socket.socket, door: socket.socket
    ) -> None:
        self._boot = boot
        self._board = board
        self._row = board.replicas[boot.replica]
        self._control_socket = control
        self._door = door
        self._control = Link(self._obey, self._lose_supervisor)
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self._watch = Watch(
            self._row, boot.hard_timeout_s, boot.timeout_s, time.monotonic, self._end_in_hook
        )
        self._tasks = TaskSet()
        self._ended = asyncio.Event()
        self._is_loaded = False
        self._is_health_watched = False
        self._is_retiring = False
        self._is_done = False
        self._is_broken = False
        self._host: Host | None = None

    async def run(self) -> None:
        """Load, serve, unload."""
        await connect(self._control_socket, self._control)
        LinkHandler(self._control, self._mailbox).install(self._boot.log_levels)
        self._row.clear()
        self._row.cause = Cause.NONE
        self._tasks.spawn(self._keep_beating())
        try:
            await self._load_and_serve()
        except Exception as exc:  # noqa: BLE001 - what loading raised is for the supervisor
            text = "".join(traceback.format_exception(exc))
            self._control.send((messages.FAILED, messages.pack_error(exc), text))
        await self._close()

    async def _load_and_serve(self) -> None:
        boot = self._boot
        factory = boot.make_factory()
        configure_export()  # unless a module of the user has done so
        lane, has_costs = self._open_lane(factory)
        self._host = host = Host(lane, self._board, boot.replica, has_costs=has_costs)
        n_examples = await lane.start(lambda: self._control.send((messages.WARMING,)), None)
        self._require_memory()
        if self._ended.is_set():  # it is not wanted any more
            return
        self._is_loaded = True
        gc.collect()
        gc.freeze()
        self._door.setblocking(False)
        asyncio.get_running_loop().add_reader(self._door, self._let_in, host)
        self._control.send((messages.READY, n_examples))
        await self._ended.wait()
        asyncio.get_running_loop().remove_reader(self._door)

    def _open_lane(self, factory: Factory) -> tuple[Lane, bool]:
        boot, handler = self._boot, factory()
        contract = read_contract(type(handler))
        pipeline = WatchedPipeline(contract, boot.name, self._watch, time.monotonic)
        context = Context(
            name=boot.name,
            version=boot.version,
            device=boot.device,
            replica=boot.replica,
            threads=boot.threads,
            batching=boot.batching,
            report=self._report_progress,
        )

        def make(_: int, on_report: OnReport) -> WatchedReplica:
            replica = WatchedReplica(handler, pipeline, context, self._mailbox, on_report)
            replica.watch = self._watch
            replica.is_held_up = self._is_held_up
            replica.is_awaited = self._is_awaited
            replica.on_change = self._note
            replica.on_answered = self._send_answers
            return replica

        options = Replicas(max_streams=boot.replicas.max_streams, restart=boot.replicas.restart)
        pool = ReplicaPool(make, options, boot.batching, self._note_change)
        spec = ModelSpec(
            name=boot.name,
            version=boot.version,
            contract=contract,
            factory=factory,
            example=handler,
            batching=boot.batching,
            replicas=options,
            limits=Limits(),
        )
        lane = Lane(spec, pool, time.monotonic)
        lane.queue.capacity = sys.maxsize  # who sends has looked for room
        return lane, contract.hooks["cost"].overridden

    def _obey(self, received: list[tuple[Any, ...]]) -> None:
        for message in received:
            if message[0] == messages.STOP:
                self._ended.set()
            elif message[0] == messages.RETIRE:
                self._retire(message[1])
            elif message[0] == messages.WATCH_HEALTH:
                self._watch_health(message[1])

    def _let_in(self, host: Host) -> None:
        """Take the sockets of HTTP processes that are passed in."""
        try:
            while (passed := recv_socket(self._door)) is not None:
                index, sock = passed
                self._tasks.spawn(host.connect(index, sock))
        except BlockingIOError:
            return
        except OSError as exc:  # too many files are open; the HTTP process sees it and asks again
            logger.error("replica.introduce.failed", exc_info=exc)

    def _is_held_up(self) -> bool:
        return self._host is not None and self._host.is_congested

    def _is_awaited(self) -> bool:
        return self._host is not None and self._host.lane.queue.occupied > 0

    def _note(self) -> None:
        if self._host is not None:
            self._host.note_soon()
        if not self._is_retiring and self._takes_too_much():
            self._retire("memory")

    def _send_answers(self) -> None:
        if self._host is not None:
            self._host.flush()

    def _takes_too_much(self) -> bool:
        limit = self._boot.replicas.memory_limit_bytes
        return limit is not None and resident_bytes() > limit

    def _require_memory(self) -> None:
        if self._takes_too_much():
            raise ConfigurationError(
                f"`memory_limit_bytes={self._boot.replicas.memory_limit_bytes}` is less than what"
                f" model `{self._boot.name}` takes when it is loaded: {resident_bytes()} bytes."
                " Raise it, to leave room for what requests take."
            )

    def _note_change(self) -> None:
        host = self._host
        if host is None:
            return
        pool = host.lane.pool
        if pool.is_broken is not self._is_broken:
            self._is_broken = pool.is_broken
            kind = messages.BROKEN if pool.is_broken else messages.MENDED
            self._control.send((kind,))
            host.tell_all(kind)
        host.lane.batcher.wake()

    def _retire(self, reason: str) -> None:
        """Begin nothing any more, finish what runs, and end."""
        if not self._is_loaded or self._host is None:
            self._ended.set()
            return
        if self._is_retiring:
            return
        self._is_retiring = True
        self._control.send((messages.RETIRING, reason))
        self._host.tell_all(messages.RETIRING)
        self._host.lane.pool.pause()
        self._tasks.spawn(self._end_when_idle(self._host))

    async def _end_when_idle(self, host: Host) -> None:
        await self._end_streams(host)
        await host.lane.pool.wait_idle()
        await host.wait_answered()
        # From here to its end: what `unload` starts, and threads of the handler's own.
        may_take_s = min(UNLOAD_S, self._boot.hard_timeout_s or UNLOAD_S)
        self._watch.bound(self, time.monotonic() + may_take_s)
        self._ended.set()

    async def _end_streams(self, host: Host) -> None:
        """Leave streams some time to end by themselves: requests may wait for another process."""
        with suppress(TimeoutError):
            await asyncio.wait_for(host.wait_streamed(), self._boot.stream_grace_s)
        host.end_streams(ReplicaDiedError(self._boot.name))

    async def _keep_beating(self) -> None:
        while True:
            self._row.beat += 1
            await asyncio.sleep(_BEAT_S)

    def _watch_health(self, period_s: float) -> None:
        if self._host is not None and not self._is_health_watched:
            self._is_health_watched = True
            self._tasks.spawn(self._keep_healthy(self._host.lane, period_s))

    async def _keep_healthy(self, lane: Lane, period_s: float) -> None:
        while lane.pool.has_health:
            await asyncio.sleep(period_s)
            try:
                await lane.pool.check_health()
            except Exception:
                logger.exception("replica.health.failed", extra={"model": self._boot.name})
                self._retire("health")
                return

    def _report_progress(self, fraction: float, note: str) -> None:
        self._mailbox.post(self._control.send, (messages.PROGRESS, fraction, note))

    def _end_in_hook(self, error: BaseException) -> None:
        """End this process from a hook: its device can only be used by a new one."""
        logger.critical("replica.device.broken", exc_info=error, extra={"model": self._boot.name})
        if self._host is not None:
            self._host.is_mute = True  # what this hook was at work for is to be run again
        self._mailbox.post(self._end_soon)
        if threading.current_thread() is not threading.main_thread():  # else it has to turn
            threading.Event().wait(2 * LAST_WORDS_S)
            os._exit(_DEVICE_BROKEN)

    def _end_soon(self) -> None:
        async def end() -> None:
            if self._host is not None:
                self._host.note_counts()
            await self._control.drain_and_close(LAST_WORDS_S)
            os._exit(_DEVICE_BROKEN)

        if not self._is_done:
            self._is_done = True
            self._tasks.spawn(end())

    async def _close(self) -> None:
        if self._host is not None:
            await self._host.lane.close()
            await self._host.close(LAST_WORDS_S)
        await self._tasks.close()
        self._is_done = True
        await self._control.drain_and_close(LAST_WORDS_S)

    def _lose_supervisor(self) -> None:
        if not self._is_done:
            end_at_once()


def main() -> None:
    """Be a replica until told otherwise."""
    inherited = inherit()
    faulthandler.enable()
    # They mean the supervisor, who finishes what is in flight first.
    # The last one stops whoever writes to a terminal that another process group has.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    control, door = inherited.control, inherited.door
    IN_REPLICA.set()
    boot: Boot = read_boot(control)
    gc.set_threshold(*boot.gc_threshold)
    board = Board(inherited.fds[0], boot.n_replicas, boot.n_clients)
    board.close()

    async def run() -> None:
        await ReplicaProcess(boot, board, control, door).run()

    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(run())


def _new_loop() -> asyncio.AbstractEventLoop:
    """Give uvloop's event loop where it is installed, as an HTTP server would."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
