"""Running an application with uvicorn: logging, signals, exit codes."""

import asyncio
import logging
import logging.config
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from mlserve.execution.worker import TaskSet
from mlserve.http.connection import Connection
from mlserve.http.gate import Gate
from mlserve.http.guards.warning import warn_if_open
from mlserve.http.listening import SharedListener, listen_more
from mlserve.http.shutdown import close_listeners, shutdown_draining
from mlserve.http.tally import Tally
from mlserve.observability.log_queue import queued_logging, stderr_handler
from mlserve.observability.loggers import get_logger
from mlserve.observability.tracing import configure_export
from mlserve.processes.boot import require_main
from mlserve.processes.sharing import Supervision
from mlserve.registry import Registry
from mlserve.settings import ServerSettings

__all__ = [
    "STARTUP_FAILURE",
    "STOPPING",
    "Place",
    "configure_logging",
    "make_config",
    "run_server",
    "serve",
    "shutdown_draining",
]

logger = get_logger(__name__)

STARTUP_FAILURE = 3
"""The exit code of a server that could not start, or whose models could not be loaded."""

STOPPING = "Stopping: requests in flight are finished first (again = at once)."
"""What is said at the first signal."""

_FASTAPI_EXPORTS = "FASTAPI_OTEL_AUTO_CONFIGURE"
_LONGEST_DRAIN_S = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of this process among several that serve HTTP at one address."""

    index: int
    """Its number."""
    sockets: Sequence[socket.socket]
    """Where all of them listen."""
    tally: Tally
    """How many connections each of them has."""
    supervision: Supervision
    """The way to who has started them."""


def run_server(
    app: FastAPI,
    registry: Registry | None,
    *,
    host: str,
    port: int,
    log_level: str,
    timeout_keep_alive_s: int,
) -> None:
    """
    Serve until SIGINT or SIGTERM, in this process and thread.

    Exits the process with 3 if the start fails or, with `on_load_failure="exit"`, a model fails
    to load later.

    Args:
        app: The application.
        registry: Its models; `None` if it is not one of ours.
        host: The address to listen on.
        port: The port to listen on.
        log_level: The level of mlserve's and uvicorn's loggers.
        timeout_keep_alive_s: After how many idle seconds a connection is closed.

    Raises:
        ConfigurationError: If a process of a server does so that only imports its main module.
    """
    require_main()
    configure_logging(log_level)
    warn_if_open(host, registry)
    config = make_config(
        app,
        registry,
        host=host,
        port=port,
        timeout_keep_alive=timeout_keep_alive_s,
    )
    serve(config, registry)


def serve(
    config: uvicorn.Config,
    registry: Registry | None,
    *,
    place: Place | None = None,
) -> None:
    """
    Serve until SIGINT or SIGTERM, in this process and thread, as `run_server` does.

    Args:
        config: How uvicorn is configured.
        registry: The application's models; `None` if it is not one of ours.
        place: Where to listen, and beside whom, if not alone at the configured address.
    """
    if os.environ.get(_FASTAPI_EXPORTS, "").strip().lower() != "true":  # else it would be twice
        configure_export()
    server = _Server(config, registry, place)
    with queued_logging("mlserve", "uvicorn"):
        server.run()
    if server.has_failed or not (server.started or server.is_ending):
        sys.exit(STARTUP_FAILURE)


def make_config(app: Any, registry: Registry | None, **options: Any) -> uvicorn.Config:
    """
    Configure uvicorn for an application: its connections are ours.

    Args:
        app: The application.
        registry: Its models; `None` if it is not one of ours.
        options: What else uvicorn is told.
    """
    settings = registry.settings if registry is not None else ServerSettings()
    config: dict[str, Any] = {
        "http": partial(Connection, settings, Gate(app)),
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": _connections_bound_s(settings.drain_s),
    }
    return uvicorn.Config(app, **(config | options))


def _connections_bound_s(drain_s: float) -> int | None:
    """Say how long uvicorn waits for connections: a little longer than the models drain."""
    return None if drain_s > _LONGEST_DRAIN_S else math.ceil(drain_s) + 5


def configure_logging(level: str) -> None:
    """Log to stderr: readable text on a terminal, one JSON object a line elsewhere."""
    prefix = "mlserve.observability.access_log"
    formatter = "AccessLogFormatter" if sys.stderr.isatty() else "JsonFormatter"
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "lines": {"class": f"{prefix}.{formatter}", "format": text, "datefmt": None}
            },
            "handlers": {"stderr": {"()": stderr_handler, "formatter": "lines"}},
            "loggers": {
                "mlserve": {"handlers": ["stderr"], "level": level.upper(), "propagate": False},
                # uvicorn's own notes on starting and stopping say again what ours say
                "uvicorn": {
                    "handlers": ["stderr"],
                    "level": "DEBUG" if level == "debug" else "WARNING",
                    "propagate": False,
                },
            },
        }
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which tells the models of a shutdown before the socket is closed."""

    def __init__(
        self,
        config: uvicorn.Config,
        registry: Registry | None,
        place: Place | None = None,
    ) -> None:
        super().__init__(config)
        self.has_failed = False
        self.is_ending = False
        self._registry = registry
        self._place = place
        self._listener: SharedListener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks = TaskSet()
        if registry is not None:
            registry.on_late_failure = self._fail
            registry.is_supervised = True

    async def startup(self, sockets: Any = None) -> None:
        """Start as uvicorn does, and say where the server is to be found."""
        self._loop = asyncio.get_running_loop()
        if self.should_exit:
            return
        if self._place is not None:
            await self._start_beside_others(self._place)
            return
        await super().startup(sockets)
        if self.started and not self.should_exit:
            for server in self.servers:
                for listener in server.sockets:
                    host, port = listener.getsockname()[:2]
                    logger.info("Serving on http://%s:%s (Ctrl+C ends it).", host, port)
            self.servers += await listen_more(self.servers, self._connect, self.config.backlog)

    async def _start_beside_others(self, place: Place) -> None:
        await place.supervision.open()
        await super().startup([])

        def count() -> int:
            return len(self.server_state.connections)

        self._listener = listener = SharedListener(
            place.sockets, self._connect, place.tally, place.index, count
        )
        self.servers: list[Any] = [listener]
        try:
            listener.listen(self.config.backlog)
        except OSError as exc:  # another server was faster
            self._fail(f"{exc}.")
        else:
            place.supervision.note_serving()

    async def on_tick(self, counter: int) -> bool:
        """Do what uvicorn does ten times a second."""
        if self._listener is not None:
            self._listener.note()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Shut down as uvicorn does while the models drain; unload them whatever happens."""
        await close_listeners(self.servers, self._connect)
        if self._listener is not None:
            await self._listener.wait_closed()
        await shutdown_draining(super().shutdown(sockets), self._registry)
        if self.force_exit:  # uvicorn leaves the lifespan alone then
            await self.lifespan.shutdown()
        await self._tasks.close()
        if self._place is not None:
            await self._place.supervision.close()

    def _connect(self) -> asyncio.Protocol:
        """Make what serves one connection."""
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=self._loop,
        )
        return made

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn `/ready` false, and close the socket after the grace; at once the second time."""
        # Unlike uvicorn's, this does not note the signal to be raised again: we exit with 0.
        is_first, self.is_ending = not self.is_ending, True
        if self._loop is None:
            self.should_exit = True
        elif self.force_exit:  # what is waited for is not ours: a hook or the user's lifespan
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        elif is_first:
            if self._place is None:  # else the supervisor has said so
                logger.info(STOPPING)
            grace_s = 0.0
            if self._registry is not None:
                self._registry.is_draining = True
                grace_s = self._registry.settings.drain_grace_s if self.started else 0.0
            self._loop.call_soon_threadsafe(self._loop.call_later, grace_s, self._end)
        else:
            self._loop.call_soon_threadsafe(self._hurry)

    def _end(self) -> None:
        self.should_exit = True
        if self._registry is not None and not self.started:  # it waits for models to be loaded
            self._tasks.spawn(self._registry.drain())

    def _hurry(self) -> None:
        """End the grace if it lasts, else the drain."""
        if not self.should_exit:
            self._end()
            return
        self.force_exit = True
        if self._registry is not None:
            self._tasks.spawn(self._registry.hurry())

    def _fail(self, reason: str) -> None:
        logger.critical("%s The server ends.", reason)
        self.has_failed = True
        self.should_exit = True
