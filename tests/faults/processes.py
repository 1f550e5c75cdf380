"""Running `mlserve run` as users do: in a process of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx2

ROOT = Path(__file__).parents[2]
APP = "tests.faults.app:app"
START_S = 30.0


class ServedProcess:
    """A server's process, and where it is to be found."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: IO[bytes]) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def wait_ready(self) -> None:
        """Wait until the models are loaded."""
        pause = threading.Event()
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/ready", timeout=2).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            pause.wait(0.02)
        raise RuntimeError(f"The server did not start. Its log:\n{self.log()}")


@contextmanager
def serving(target: str = APP, *options: str, **environment: Any) -> Iterator[ServedProcess]:
    """
    Serve until the end of the block; a process that is still there then is killed.

    Args:
        target: What `mlserve run` is given.
        options: Further options of it.
        environment: Variables that it is run with.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlserve", "run", target, "--port", str(port), *options]
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log) as process,
    ):
        served = ServedProcess(process, port, log)
        try:
            served.wait_ready()
            yield served
            process.terminate()
            process.wait(20)
        finally:
            if process.poll() is None:
                process.kill()
