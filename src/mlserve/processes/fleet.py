"""
All replicas of a model in their processes, and whoever sends them requests.

Lives on the event loop of the supervisor: the process that serves HTTP or, where several do, the
one that has started them.
"""

import asyncio
import gc
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mlserve.execution.devices import available_cores, device_of
from mlserve.execution.worker import TaskSet
from mlserve.observability.exposition import VARIABLE as SHARED_METRICS
from mlserve.observability.exposition import shared_directory
from mlserve.observability.loggers import get_logger
from mlserve.processes import messages
from mlserve.processes.board import Board
from mlserve.processes.boot import Boot, main_module, require_main
from mlserve.processes.environment import replica_environment, threads_for
from mlserve.processes.keeper import Keeper, ReplicaState
from mlserve.processes.load import Load
from mlserve.processes.logs import log_levels
from mlserve.processes.pickling import dumps_factory
from mlserve.processes.process import ChildProcess
from mlserve.processes.scaling import LONG_WAIT_S, Scaling
from mlserve.spec import Factory, ModelSpec

__all__ = ["Fleet", "FleetStatus", "Listener"]

logger = get_logger(__name__)

_WATCH_S = 0.1
_AWAY_S = 1.0
_SCALE_S = 1.0
_INTRODUCE_S = 0.5
_WARN_S = 60.0
_STREAM_GRACE_S = 30.0  # as long as Kubernetes leaves a pod that is to end
_MAX_LOST = 3


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """How the replicas of a model are, as far as it matters to who sends them requests."""

    is_recovering: bool = True
    """Whether a replica that does not serve now should soon do so."""
    serving: frozenset[int] = frozenset()
    """The replicas that serve."""
    pids: Mapping[int, int] = field(default_factory=dict)
    """The processes that HTTP processes are connected with, by replica."""
    load_s: float = 0.0
    """How long the last load took, in seconds."""
    reason: str | None = None
    """Why the last replica was lost, for `/ready`."""


class Listener(Protocol):
    """An HTTP process, as the fleet sees it."""

    def replica_up(self, number: int, sock: socket.socket) -> None:
        """Take the way to a replica that can serve, or raise `OSError`: it is offered again."""

    def note_status(self, status: FleetStatus) -> None:
        """Learn how the replicas are."""

    def note_progress(self, number: int, fraction: float, note: str) -> None:
        """Learn how far a load has come."""

    def note_warming(self) -> None:
        """Learn that a replica was loaded."""


class Fleet:
    """
    Starts, watches and replaces the processes of one model.

    Args:
        spec: The model.
        factory: Makes its handlers; `None` = as it was added.
        n_clients: How many HTTP processes there are.
        scaling: Says how many replicas there should be, if that is to change.
        clock: Gives monotonic seconds.

    Raises:
        ConfigurationError: If another process could not find the handler.
    """

    def __init__(
        self,
        spec: ModelSpec,
        factory: Factory | None = None,
        *,
        n_clients: int = 1,
        scaling: Scaling | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.board = Board.create(spec.replicas.max_count, n_clients)
        """The figures that its processes share."""
        self.status = FleetStatus()
        self._spec = spec
        self._factory = dumps_factory(factory or spec.factory, spec.name)
        self._clock = clock
        self._listeners: dict[int, Listener] = {}
        self._keepers: dict[int, Keeper] = {}
        self._tasks = TaskSet()
        options = spec.replicas
        self._scaling = scaling or Scaling(options.min_count, options.max_count)
        self._load_timeout_s: float | None = None
        self._health_period_s: float | None = None

    async def start(self, load_timeout_s: float | None) -> int:
        """
        Start all replicas at once and wait until they can serve.

        Args:
            load_timeout_s: How long that may take, and each later load, in seconds.

        Returns:
            With how many examples each was warmed up.

        Raises:
            ConfigurationError: If this process is to be a replica itself.
            Exception: What the first failing replica raised.
            TimeoutError: If it took longer.
        """
        require_main()
        self._load_timeout_s = load_timeout_s
        self._tasks.spawn(self._keep_watch())
        for number in range(self._spec.replicas.min_count):
            self._add(number)
        limit = asyncio.timeout(load_timeout_s)
        try:
            async with limit:
                loads = (keeper.first_load for keeper in self._keepers.values())
                return max(await asyncio.gather(*loads))
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"Load and warm-up took longer than {load_timeout_s:g} s.") from None

    def listen(self, index: int, listener: Listener) -> None:
        """Tell an HTTP process of the replicas, and connect it with those that serve."""
        self._listeners[index] = listener
        self._introduce_all()
        listener.note_status(self.status)

    def leave(self, index: int) -> None:
        """Forget an HTTP process."""
        self._listeners.pop(index, None)
        for keeper in self._keepers.values():
            keeper.introduced.discard(index)
            keeper.n_lost.pop(index, None)

    def note_lost(self, index: int, number: int, pid: int) -> None:
        """
        Learn that the way from an HTTP process to a replica has ended: it gets another one.

        Args:
            index: The HTTP process.
            number: The replica.
            pid: Its process, which may have ended since; 0 if the way has not arrived at all.
        """
        keeper = self._keepers.get(number)
        if keeper is None or keeper.process is None or pid not in (0, keeper.process.pid):
            return
        keeper.introduced.discard(index)
        if pid:  # else it is not the replica's fault
            keeper.n_lost[index] += 1

    def watch_health(self, period_s: float) -> None:
        """Have each replica call its `health` hook every so often."""
        self._health_period_s = period_s
        for keeper in self._keepers.values():
            self._ask_for_health(keeper)

    async def close(self) -> None:
        """Have every replica unload and end; those that have not by a cancellation are killed."""
        try:
            await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()))
        finally:
            await self._tasks.close()
            self._keepers.clear()
            self._listeners.clear()
            self.board.close()

    async def launch(self, number: int, process: ChildProcess) -> None:
        """Start the process of a replica."""
        spec = self._spec
        threads = threads_for(spec.replicas, n_cores=available_cores())
        environment, device = replica_environment(
            os.environ,
            device=device_of(number, spec.replicas),
            threads=threads,
            keep=spec.replicas.keep_environment,
        )
        boot = Boot(
            name=spec.name,
            version=spec.version,
            device=device,
            replica=number,
            n_replicas=self.board.n_replicas,
            n_clients=self.board.n_clients,
            batching=spec.batching,
            replicas=spec.replicas,
            threads=threads,
            timeout_s=spec.limits.timeout_s,
            hard_timeout_s=spec.limits.hard_timeout_s,
            stream_grace_s=_STREAM_GRACE_S,
            log_levels=log_levels(),
            gc_threshold=gc.get_threshold(),
            factory=self._factory,
            main=main_module(self._factory),
        )
        environment[SHARED_METRICS] = shared_directory()
        await process.start(boot, self.board, environment)

    def note_state(self, keeper: Keeper) -> None:
        """Learn that a replica's state has changed."""
        if keeper.state is ReplicaState.SERVING:
            self._introduce_all()
            self._ask_for_health(keeper)
        elif keeper.state is ReplicaState.ENDED:
            self._keepers.pop(keeper.number, None)
        keepers = self._keepers.values()
        connected = (ReplicaState.SERVING, ReplicaState.BROKEN)
        coming = (ReplicaState.LOADING, ReplicaState.WAITING, ReplicaState.RETIRING)
        self.status = FleetStatus(
            is_recovering=any(k.state in coming and not k.is_given_up for k in keepers),
            serving=frozenset(k.number for k in keepers if k.state is ReplicaState.SERVING),
            pids={k.number: k.process.pid for k in keepers if k.state in connected and k.process},
            load_s=max((k.load_s for k in keepers), default=0.0),
            reason=keeper.reason,
        )
        for listener in self._listeners.values():
            listener.note_status(self.status)

    def note_progress(self, number: int, fraction: float, note: str) -> None:
        """Learn how far a replica's load has come."""
        for listener in self._listeners.values():
            listener.note_progress(number, fraction, note)

    def note_warming(self) -> None:
        """Learn that a replica was loaded."""
        for listener in self._listeners.values():
            listener.note_warming()

    def _add(self, number: int) -> Keeper:
        spec = self._spec
        keeper = Keeper(
            number,
            self,
            self.board,
            spec.replicas.restart,
            spec.name,
            is_idempotent=spec.contract.handler_class.idempotent,
            clock=self._clock,
        )
        self._keepers[number] = keeper
        self._tasks.spawn(keeper.keep(lambda: self._load_timeout_s))
        return keeper

    def _introduce_all(self) -> None:
        """Connect each HTTP process with each replica that serves, if it is not."""
        for keeper in self._keepers.values():
            if keeper.takes_clients:
                for index in self._listeners.keys() - keeper.introduced:
                    self._introduce(keeper, index)

    def _introduce(self, keeper: Keeper, index: int) -> None:
        if keeper.process is None:
            return
        if keeper.n_lost[index] > _MAX_LOST:
            keeper.kill("the way to it has ended again and again")
            return
        try:
            self._listeners[index].replica_up(keeper.number, keeper.process.introduce(index))
        except OSError as exc:  # one of them has just ended, or there is no further descriptor
            self._warn_of_refusal(keeper, exc)
        else:
            keeper.introduced.add(index)

    def _warn_of_refusal(self, keeper: Keeper, error: OSError) -> None:
        """Log now and then that a replica could not be connected: it is tried again and again."""
        now = self._clock()
        if now - keeper.warned_at >= _WARN_S:
            keeper.warned_at = now
            extra = {"model": self._spec.name, "replica": keeper.number}
            logger.warning("replica.introduce.failed", exc_info=error, extra=extra)

    def _ask_for_health(self, keeper: Keeper) -> None:
        if self._health_period_s is not None and keeper.process is not None:
            keeper.process.send(messages.WATCH_HEALTH, self._health_period_s)

    async def _keep_watch(self) -> None:
        load = Load(self.board, self._spec.batching.max_size)
        scaled_at = introduced_at = looked_at = self._clock()
        while True:
            await asyncio.sleep(_WATCH_S)
            now = self._clock()
            was_away, looked_at = now - looked_at > _AWAY_S, now
            for keeper in list(self._keepers.values()):
                if was_away:
                    keeper.skip_watch(now)
                else:
                    keeper.watch(now)
            if now - introduced_at >= _INTRODUCE_S:
                introduced_at = now
                self._introduce_all()
            load.sample(self.status.serving)
            if now - scaled_at >= _SCALE_S:
                scaled_at = now
                self._scale(now, load)

    def _scale(self, now: float, load: Load) -> None:
        """Begin or retire a replica if the load asks for it."""
        options, wait_s, batch_s = self._spec.replicas, load.wait_s(), load.batch_s()
        busy_share = load.take_busy_share()
        if options.min_count == options.max_count or not self.status.serving:
            return
        self._scaling.long_wait_s = max(LONG_WAIT_S, 2 * batch_s)
        kept = [keeper for keeper in self._keepers.values() if keeper.is_wanted]
        before, n_serving = len(kept), len(self.status.serving)
        wanted = self._scaling.decide(
            now,
            n_replicas=before,
            wait_s=wait_s,
            busy_share=busy_share,
            n_loading=max(0, before - n_serving),
        )
        if wanted == before:
            return
        about = {"model": self._spec.name, "replicas": wanted, "wait_s": round(wait_s, 3)}
        if wanted < before:
            # Rather one that has failed than one that serves.
            least = max(kept, key=lambda keeper: (not keeper.takes_clients, keeper.number))
            least.retire("fewer are needed")
            logger.info("model.replicas.shrunk", extra=about)
        elif free := set(range(options.max_count)) - self._keepers.keys():  # else one is leaving
            self._add(min(free)).first_load.set_result(0)  # nobody waits for it
            logger.info("model.replicas.grown", extra=about)

    def __repr__(self) -> str:
        states = ", ".join(keeper.state.value for keeper in self._keepers.values())
        return f"<Fleet of {self._spec.name}: {states}>"
