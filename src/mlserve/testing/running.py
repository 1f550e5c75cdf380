"""A server on a real socket, in a thread of the test."""

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn

from mlserve.http.runner import make_config, shutdown_draining
from mlserve.registry import Registry
from mlserve.server import ModelServer

__all__ = ["running"]


@contextmanager
def running(
    server: Any, *, wait_ready: bool = True, timeout_s: float = 60.0
) -> Iterator[httpx2.Client]:
    """
    Run a server on a free port of 127.0.0.1 and give a client of it, ready to be asked.

    The server runs in a thread of its own and is stopped on leaving.

    Args:
        server: A `ModelServer`, an application with models in it, or any ASGI application.
        wait_ready: Whether to wait until every model is loaded.
        timeout_s: How long the start, each of the client's requests and the stop may take.

    Raises:
        RuntimeError: If the server did not start or a model is not ready; its log says why.

    Example:
        >>> with running(server) as client:
        ...     client.post("/v1/models/echo/predict", json={"text": "hello"}).json()
        {'text': 'hello'}
    """
    app = server.build() if isinstance(server, ModelServer) else server
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        registry = getattr(getattr(app, "state", None), "mlserve_registry", None)
        bound_s = math.ceil(timeout_s)
        config = make_config(app, registry, timeout_graceful_shutdown=bound_s)
        runner = _ThreadedServer(config, registry)
        thread = threading.Thread(target=runner.run, args=([listener],), name="mlserve-test-server")
        thread.start()
        try:
            if not runner.wait_started(timeout_s):
                raise RuntimeError("The server did not start. Its log says why.")
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=timeout_s) as client:
                if wait_ready and registry is not None and not registry.wait_loaded(timeout_s):
                    states = ", ".join(repr(model) for model in registry)
                    raise RuntimeError(f"The models are not ready: {states}. The log says why.")
                yield client
        finally:
            runner.should_exit = True
            thread.join(timeout_s)


class _ThreadedServer(uvicorn.Server):
    """uvicorn's server with a start that other threads can wait for."""

    def __init__(self, config: uvicorn.Config, registry: Registry | None) -> None:
        super().__init__(config)
        self._registry = registry
        self._has_begun = threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit`; whoever waits for the start is told if it failed."""
        try:
            super().run(sockets)
        except SystemExit:
            self.started = False
        finally:
            self._has_begun.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, then tell."""
        await super().startup(sockets)
        self._has_begun.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as `mlserve run` does."""
        await shutdown_draining(super().shutdown(sockets), self._registry)

    def wait_started(self, timeout_s: float) -> bool:
        """Wait for the start; whether it succeeded."""
        return self._has_begun.wait(timeout_s) and self.started and not self.should_exit
