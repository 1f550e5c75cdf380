"""All models of a server by name and version, and their common start and end."""

import asyncio
import gc
import math
import signal
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager

from mlserve.engine import Engine
from mlserve.errors import ConfigurationError, ModelNotFoundError
from mlserve.execution.worker import TaskSet
from mlserve.model import Model
from mlserve.observability.loggers import get_logger
from mlserve.records.recording import Recording
from mlserve.records.sink import Sink
from mlserve.settings import ServerSettings
from mlserve.shadow import ShadowCopies
from mlserve.traffic import Shadow, Traffic, point_of, version_number

__all__ = ["Registry"]

logger = get_logger(__name__)

_GC_THRESHOLD = 20_000


class Registry:
    """
    The models of one server.

    Args:
        settings: How they are started and stopped.
        sinks: Who gets a record of every request of every model.

    Raises:
        ConfigurationError: If one of them is no sink.
    """

    def __init__(self, settings: ServerSettings, sinks: Sequence[Sink] = ()) -> None:
        self.settings = settings
        self.on_late_failure: Callable[[str], None] = _ask_to_stop
        """Ends the process when a model fails to load after the start; set by who runs it."""
        self.is_draining = False
        """Whether the server is shutting down."""
        self.is_hurried = False
        """Whether the shutdown waits no longer for requests in flight."""
        self.is_running = False
        """Whether the models are loading, loaded or being unloaded."""
        self.is_supervised = False
        """Whether who runs the server begins the drain; else the application looks for signals."""
        self.is_guarded = False
        """Whether who asks is checked, as far as the server can tell."""
        self.troubles: dict[str, str] = {}
        """What is wrong beside the models, by what it is; `/ready` says it."""
        self.closers: list[Callable[[], Awaitable[None]]] = []
        """What is called, once the models are unloaded, to close connections of the server."""
        self.loaded = threading.Event()
        """Set once every model is loaded or has failed; any thread may wait for it."""
        self.recording = Recording(sinks)
        """The sinks that are told of answered requests."""
        self._models: dict[str, dict[str, Model]] = {}
        # By name; a change replaces an entry whole, so that no request sees a part of it.
        self._traffic: dict[str, Traffic] = {}
        self._shadows: dict[str, ShadowCopies] = {}
        self._loads = TaskSet()
        self._hurried = asyncio.Event()

    def add(self, model: Model) -> None:
        """
        Register a model.

        Raises:
            ConfigurationError: If its name and version are taken.
        """
        versions = self._models.setdefault(model.name, {})
        if model.version in versions:
            raise ConfigurationError(
                f"Model `{model.name}` has a version `{model.version}` already."
                " Give one of them another name or version."
            )
        versions[model.version] = model
        self._models[model.name] = dict(
            sorted(versions.items(), key=lambda item: version_number(item[0]))
        )

    def get(self, name: str, version: str | None = None) -> Model:
        """
        Find a model; without a version, its newest.

        Raises:
            ModelNotFoundError: If there is none.
        """
        versions = self._models.get(name, {})
        if version is None and versions:
            return next(reversed(versions.values()))
        if version is None or version not in versions:
            raise ModelNotFoundError(name, version if versions else None)
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """
        Give the versions of a model, the newest last.

        Raises:
            ModelNotFoundError: If there is none.
        """
        self.get(name)
        return list(self._models[name])

    def route(
        self, name: str, weights: Mapping[str, float], shadow: Shadow | None = None
    ) -> Traffic:
        """
        Divide the requests that name no version, from the next one on.

        While the server runs, call it on its event loop.

        Args:
            name: The model's name.
            weights: Which part of them each version gets; they sum to one.
            shadow: Which version gets copies.

        Raises:
            ConfigurationError: If that cannot be done; all stays as it was then.
        """
        if name not in self._models:
            raise ConfigurationError(f"There is no model {name!r}: add it before its route.")
        traffic = Traffic.checked(weights, shadow, self._models[name])
        before = self._shadows.get(name)
        if before is not None and before.options != shadow:
            before.cancel()
            del self._shadows[name]
        if shadow is not None and name not in self._shadows:
            self._shadows[name] = ShadowCopies(self.get(name, shadow.version), shadow)
        self._traffic[name] = traffic
        return traffic

    def traffic(self, name: str) -> Traffic:
        """
        Say how the requests that name no version are divided.

        Raises:
            ModelNotFoundError: If there is no such model.
        """
        return self._traffic.get(name) or Traffic({self.get(name).version: 1.0})

    def choose(self, name: str, key: str, among: Collection[str] | None = None) -> Model | None:
        """
        Give the version that a request goes to which names none.

        Args:
            name: The model's name.
            key: What stays the same for the client, who then keeps its version.
            among: The versions that can answer it; `None` = all.

        Returns:
            The version; `None` if those that get requests cannot answer this one.

        Raises:
            ModelNotFoundError: If there is no such model.
        """
        able = self.versions(name) if among is None else among
        chosen = self.traffic(name).choose(point_of(name, key), able)
        return None if chosen is None else self.get(name, chosen)

    def shadow_of(self, model: Model, request_id: str) -> ShadowCopies | None:
        """Give who wants a copy of a request that a version answers, if anybody does."""
        copies = self._shadows.get(model.name)
        if copies is None or copies.model is model:
            return None
        is_copied = point_of(f"shadow of {model.name}", request_id) < copies.options.share
        return copies if is_copied else None

    @property
    def n_processes(self) -> int:
        """How many processes serve the models over HTTP."""
        return max((model.engine.n_processes for model in self), default=1)

    def newest(self) -> dict[str, Model]:
        """Give the newest version of each model, by name."""
        return {name: self.get(name) for name in self._models}

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for model in versions.values())

    def __len__(self) -> int:
        return sum(len(versions) for versions in self._models.values())

    def wait_loaded(self, timeout_s: float) -> bool:
        """
        Wait, in another thread than the server's, until every model is loaded or has failed.

        Returns:
            Whether all are ready.
        """
        is_done = self.loaded.wait(timeout_s)
        return is_done and all(model.engine.lifecycle.is_ready for model in self)

    @asynccontextmanager
    async def running(self, wait_s: float | None = None) -> AsyncIterator[None]:
        """
        Load all models, serve, then drain and unload them.

        Args:
            wait_s: How long entering waits for models, in seconds; what is not loaded by then
                goes on loading. `None` = the setting `startup_wait_s`.

        Raises:
            ConfigurationError: If they are running already.
            Exception: If a model cannot be loaded within that time and `on_load_failure` is
                `exit`; the others are unloaded first.
        """
        if self.is_running:
            raise ConfigurationError(
                "The models are running already: one application at a time can run them."
            )
        self.is_draining = False
        self.is_running = True
        self.loaded.clear()
        self._hurried = asyncio.Event()
        self._loads = loads = TaskSet()
        wait_s = self.settings.startup_wait_s if wait_s is None else wait_s
        try:
            with _relieved_gc(enabled=self.settings.freeze_gc) as freeze:
                try:
                    self.recording.open()
                    await self._load_all(loads, wait_s, freeze)
                    yield
                finally:
                    await self._stop_all(loads)
                    flush_s = self.settings.flush_s
                    await self.recording.close(min(flush_s, 1.0) if self.is_hurried else flush_s)
        finally:
            self.is_running = self.is_hurried = False
            for close in self.closers:
                await close()

    async def _stop_all(self, loads: TaskSet) -> None:
        self.begin_drain()
        await asyncio.gather(*(copies.close() for copies in self._shadows.values()))
        await loads.close()
        tasks = TaskSet()
        stop = tasks.spawn(self._stop_engines(self.settings.drain_s))
        hurried = tasks.spawn(self._hurried.wait())
        try:
            await asyncio.wait((stop, hurried), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.close()
        if stop.cancelled():
            await self._stop_engines(0.0)
        else:
            stop.result()

    async def _stop_engines(self, drain_s: float) -> None:
        await asyncio.gather(*(model.engine.stop(drain_s) for model in self))

    def begin_drain(self) -> None:
        """Turn `/ready` false and refuse new work."""
        self.is_draining = True
        for model in self:
            model.engine.refuse_new_work()
        for copies in self._shadows.values():
            copies.cancel()  # nobody waits for them, and the drain would

    async def drain(self) -> None:
        """
        Refuse new work and wait for what is in flight; after `drain_s` the rest is answered.

        Models that are still loading are not waited for.

        For who runs the server: connections end only once their requests are answered, and the
        server leaves `running` only once its connections have ended.
        """
        self.begin_drain()
        await self._loads.close()
        await asyncio.gather(*(model.engine.drain(self.settings.drain_s) for model in self))

    async def hurry(self) -> None:
        """End the drain at once: what is in flight is answered with `draining`."""
        self.is_hurried = True
        self._hurried.set()
        self.begin_drain()
        await asyncio.gather(*(model.engine.drain(0.0) for model in self))

    async def _load_all(self, loads: TaskSet, wait_s: float, freeze: Callable[[], None]) -> None:
        tasks = [loads.spawn(self._load(model.engine)) for model in self]
        if not tasks:
            self.loaded.set()
            return
        done, late = await asyncio.wait(tasks, timeout=None if math.isinf(wait_s) else wait_s)
        # A shutdown ends the loads: nobody failed then, and the server ends as it does at any time.
        ended = [task for task in done if not task.cancelled()]
        errors = [error for task in ended if (error := task.result()) is not None]
        if errors and self.settings.on_load_failure == "exit" and not self.is_draining:
            raise errors[0]
        for task in late:
            task.add_done_callback(self._note_late)
        if late:
            loads.spawn(self._note_loaded(late, freeze))
        else:
            freeze()
            self.loaded.set()

    async def _note_loaded(
        self, late: "set[asyncio.Task[Exception | None]]", freeze: Callable[[], None]
    ) -> None:
        await asyncio.wait(late)
        freeze()
        self.loaded.set()

    async def _load(self, engine: Engine) -> Exception | None:
        """Load one model; its failure is logged there and returned here."""
        try:
            await engine.start(
                load_timeout_s=self.settings.load_timeout_s,
                health_period_s=self.settings.health_period_s,
            )
        except Exception as exc:  # noqa: BLE001 - user code may raise anything
            return exc
        return None

    def _note_late(self, task: "asyncio.Task[Exception | None]") -> None:
        if task.cancelled() or task.exception() is not None or task.result() is None:
            return
        # What a shutdown has ended is nobody's failure.
        if self.settings.on_load_failure == "exit" and not self.is_draining:
            self.on_late_failure(f"A model could not be loaded: {task.result()!r}")


def _ask_to_stop(reason: str) -> None:
    """Ask whatever server runs the application to stop, if it listens to SIGTERM."""
    logger.critical("%s", reason)
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, None):
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _relieved_gc(*, enabled: bool) -> Iterator[Callable[[], None]]:
    """
    Keep the collector from walking, again and again, what the models allocate for good.

    Gives what is to be called once they are loaded.
    """
    if not enabled:
        yield _nothing
        return
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _GC_THRESHOLD), *before[1:])
    try:
        yield _freeze
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


def _nothing() -> None:
    """What models allocate is left to the collector."""
