"""Projects that the tests of the command line serve, and how the command is run on them."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx2

COMMAND = [sys.executable, "-m", "mlserve"]
RUN = [*COMMAND, "run"]
UVICORN = [sys.executable, "-m", "uvicorn"]

REVIEWS = '''
import os
import sys
import threading
from collections.abc import Iterator

from mlserve import ModelHandler, ModelServer, ServerSettings


class Shout(ModelHandler[str, str]):
    def load(self) -> None:
        if os.environ.get("FAIL") == "load":
            raise OSError("There are no weights.")
        print("load", flush=True)

    def examples(self) -> list[str]:
        return ["hello", "bad"] if os.environ.get("FAIL") == "example" else ["hello"]

    def warmup(self) -> None:
        """The examples are for `mlserve check` alone."""

    def infer(self, inputs: list[str]) -> list[str]:
        if "bad" in inputs:
            raise RuntimeError("This text is bad.")
        if "wait" in inputs:
            print("waiting", flush=True)
            threading.Event().wait(float(os.environ.get("WAIT_S", "0.5")))
        return [text.upper() for text in inputs]

    def stream(self, item: str) -> Iterator[str]:
        pause = threading.Event()
        yield item
        while item == "x":
            pause.wait(0.02)
            yield item

    def unload(self) -> None:
        print("unload", flush=True)


server = ModelServer(title="Reviews").add("shout", Shout)
text = "no server"


class Late(Shout):
    def load(self) -> None:
        threading.Event().wait(0.3)
        raise OSError("There are no weights.")


late = ModelServer(settings=ServerSettings(startup_wait_s=0)).add("late", Late)
'''


def write_project(folder: Path) -> Path:
    """Write the module `reviews` into a folder."""
    (folder / "reviews.py").write_text(REVIEWS, encoding="utf-8")
    (folder / "broken.py").write_text("import no_such_package_4711\n", encoding="utf-8")
    (folder / "app.py").write_text("from reviews import server\napp = server.build()\n")
    return folder


def run_command(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command to its end and give exit code, stdout and stderr."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class Served:
    """A running server."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._read, args=(stream,))
            for stream in (process.stdout, process.stderr)
            if stream is not None
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, text: str, timeout_s: float = 30.0) -> str:
        """Wait for a line of the output that holds a text, and give it."""
        with self.changed:
            assert self.changed.wait_for(lambda: self._find(text) is not None, timeout_s), (
                text,
                self.lines,
            )
            return str(self._find(text))

    def address(self) -> tuple[str, int]:
        """Wait until it listens, and say where."""
        host, _, port = (
            self.wait_for(" on http://").partition("http://")[2].split()[0].rpartition(":")
        )
        return host, int(port)

    def client(self) -> httpx2.Client:
        """Give a client of it."""
        host, port = self.address()
        return httpx2.Client(base_url=f"http://{host}:{port}", timeout=10)

    def exit_code(self) -> int:
        """Wait for its end."""
        code = self.process.wait(30)
        for thread in self._threads:
            thread.join(5)
        return code

    def _find(self, text: str) -> str | None:
        return next((line for line in self.lines if text in line), None)

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self.changed:
                    self.lines.append(line)
                    self.changed.notify_all()


@contextmanager
def serving(
    folder: Path,
    *arguments: str,
    command: Sequence[str] = RUN,
    port: int = 0,
    stderr: int = subprocess.PIPE,
    **environment: Any,
) -> Iterator[Served]:
    """Run a server, on a free port unless one is given, and end it whatever happens."""
    process = subprocess.Popen(
        [*command, *arguments, "--port", str(port)],
        cwd=folder,
        env=_environment(environment),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    served = Served(process)
    try:
        yield served
    finally:
        process.kill()
        served.exit_code()


def _environment(more: dict[str, str]) -> dict[str, str]:
    measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": "", "COLUMNS": "120", **measured, **more}
