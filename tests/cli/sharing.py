"""A project whose replica is shared by several HTTP processes, and ways to look at these."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from tests.cli.projects import Served, serving
from tests.http.waiting import until

PROJECT = '''
import os
import time
from pathlib import Path

from mlserve import Batching, ModelHandler, ModelServer, Replicas
from mlserve.errors import ConfigurationError

FAIL = os.environ.get("FAIL")


def say(text: str) -> None:
    print(f"{text} {os.getpid()}", flush=True)


def wait_for(file: str) -> None:
    say(f"waiting for {file}")
    while not Path(os.environ.get("DIR", "."), file).exists():
        time.sleep(0.005)


class Mix(ModelHandler[str, list[str]]):
    """Answers with what was in the batch; a request that begins with `go` waits for a file."""

    def load(self) -> None:
        say(f"load {self.context.name}")
        if FAIL == "load":
            raise OSError("There are no weights.")
        if "LOADED" in os.environ:
            wait_for(os.environ["LOADED"])

    def examples(self) -> list[str]:
        return ["hello"]

    def infer(self, inputs: list[str]) -> list[list[str]]:
        for text in inputs:
            if text.startswith("go"):
                wait_for(text)
        time.sleep(0.002)
        return [sorted(inputs) for _ in inputs]

    def unload(self) -> None:
        say(f"unload {self.context.name}")


if FAIL == "import" and os.environ.get("FIRST") != str(os.getppid()):
    raise OSError("This cannot be imported twice.")

server = ModelServer().add(
    "mix", Mix, batching=Batching(max_size=8), replicas=Replicas(placement="process")
)
app = server.build()
copied = ModelServer().add("copied", Mix)
copied_app = copied.build()


@app.get("/pid")
@copied_app.get("/pid")
async def pid() -> int:
    return os.getpid()


@app.get("/block")
async def block() -> None:
    say("blocked")
    time.sleep(60)


@app.post("/reload")
async def reload() -> str:
    try:
        await server.model_for("mix").reload()
    except ConfigurationError as exc:
        return str(exc)
    return "reloaded"
'''

SCRIPT = """
import sys

from pydantic import BaseModel

from mlserve import ModelHandler, ModelServer, Replicas


class Text(BaseModel):
    text: str


class Shout(ModelHandler[Text, Text]):
    def infer(self, inputs: list[Text]) -> list[Text]:
        return [Text(text=item.text.upper()) for item in inputs]


server = ModelServer().add("shout", Shout, replicas=Replicas(placement="process"))
"""
GUARDED = f"""{SCRIPT}
if __name__ == "__main__":
    server.run(port=int(sys.argv[-1]), workers=2)
"""
UNGUARDED = f"""{SCRIPT}
server.run(port=int(sys.argv[-1]), workers=2)
"""

WORKERS = ("--workers", "2")


def write_shared_project(folder: Path) -> Path:
    """Write the module `shared` and two scripts into a folder."""
    (folder / "shared.py").write_text(PROJECT, encoding="utf-8")
    (folder / "guarded.py").write_text(GUARDED, encoding="utf-8")
    (folder / "unguarded.py").write_text(UNGUARDED, encoding="utf-8")
    return folder


@contextmanager
def sharing(folder: Path, target: str = "shared:server", **environment: Any) -> Iterator[Served]:
    """Serve with two HTTP processes."""
    with serving(folder, target, *WORKERS, **environment) as served:
        yield served


@contextmanager
def running_script(folder: Path, name: str) -> Iterator[Served]:
    """Run a script that serves."""
    with serving(folder, name, command=[sys.executable]) as served:
        yield served


def pid_of(client: httpx2.Client) -> int:
    """Say which process a client's connection leads to."""
    return int(client.get("/pid").json())


@contextmanager
def client_of_each(served: Served, n: int = 2) -> Iterator[dict[int, httpx2.Client]]:
    """Give a client with a connection to each HTTP process, by the process's number."""
    with ExitStack() as stack:
        clients: dict[int, httpx2.Client] = {}

        def find() -> bool:
            client = served.client()
            pid = pid_of(client)
            if pid in clients:
                client.close()
            else:
                stack.callback(client.close)
                clients[pid] = client
            return len(clients) == n

        until(find)
        yield clients


def mixed(client: httpx2.Client, text: str) -> httpx2.Response:
    """Ask the model for what it finds in the batch of a request."""
    return client.post("/v1/models/mix/predict", json=text)


def statistics_of(client: httpx2.Client) -> dict[str, Any]:
    """Give what a process says of the model."""
    found: dict[str, Any] = client.get("/v1/models/mix").json()["statistics"]
    return found


def pids_that(served: Served, did: str) -> list[int]:
    """Give the processes that said that they did something."""
    with served.changed:
        return [int(line.split()[-1]) for line in served.lines if line.startswith(f"{did} ")]


def children_of(pid: int) -> list[int]:
    """Give the processes that one has started and that have not ended."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with suppress(OSError):
                state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    found.append(int(directory.name))
    return found


def is_alive(pid: int) -> bool:
    """Say whether a process has not ended; one that nobody has waited for has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal."""
    os.kill(pid, number)


class Asking:
    """
    Calls a function again and again in a thread of its own, and keeps what it gives.

    Args:
        ask: The function; what it raises ends the asking and is kept.
    """

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.answers: list[Any] = []
        self.problem: Exception | None = None
        self._ask = ask
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for_more(self, n: int = 5) -> None:
        """Wait until there are so many more answers."""
        before = len(self.answers)
        until(lambda: self.problem is not None or len(self.answers) >= before + n)

    def end(self) -> None:
        """Ask no more, and wait for the last answer."""
        self._ended.set()
        self._thread.join(15)

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self.answers.append(self._ask())
        except Exception as exc:
            self.problem = exc
