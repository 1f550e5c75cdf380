"""
A project whose models take as long as they are told, and clients that are there when it stops.

The models say on stdout what they do, so that a test can wait for it.
"""

import json
import socket
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.projects import RUN, UVICORN, Served, serving
from tests.faults.client import Answer, answers_in

SLOW = '''
import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from mlserve import Batching, Call, ModelHandler, ModelServer

STEP_S = 0.02
LONGER_S = 0.3
working: list[str] = []


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def at_work(model: str, hook: str) -> Iterator[None]:
    working.append(model)
    say(f"begun {model} {hook}")
    try:
        yield
    finally:
        working.remove(model)


class Quick(ModelHandler[float, float]):
    """Takes the seconds that it is sent."""

    def load(self) -> None:
        say(f"load {self.context.name}")
        time.sleep(float(os.environ.get("LOAD_S", "0")))

    def infer(self, inputs: list[float], calls: list[Call]) -> list[float]:
        with at_work(self.context.name, "infer"):
            time.sleep(max(inputs))
        return inputs

    def stream(self, item: float, call: Call) -> Iterator[float]:
        with at_work(self.context.name, "stream"):
            for _ in range(int(item / STEP_S)):
                time.sleep(STEP_S)
                yield item

    def unload(self) -> None:
        say(f"unload {self.context.name}, {working.count(self.context.name)} at work")


class Late(Quick):
    """Ends a little after nobody waits any more."""

    def infer(self, inputs: list[float], calls: list[Call]) -> list[float]:
        with at_work(self.context.name, "infer"):
            while not all(call.cancelled for call in calls):
                time.sleep(STEP_S)
            time.sleep(LONGER_S)
        return inputs

    def stream(self, item: float, call: Call) -> Iterator[float]:
        with at_work(self.context.name, "stream"):
            try:
                while True:
                    time.sleep(STEP_S)
                    yield item
            finally:
                time.sleep(LONGER_S)


def outlast(call: Call) -> None:
    while not call.cancelled:
        time.sleep(STEP_S)
    time.sleep(LONGER_S)


class LatePreprocess(Quick):
    def preprocess(self, request: float, call: Call) -> float:
        with at_work(self.context.name, "preprocess"):
            outlast(call)
        return request


class LatePostprocess(Quick):
    def infer(self, inputs: list[float], calls: list[Call]) -> list[float]:
        return inputs

    def postprocess(self, output: float, call: Call) -> float:
        with at_work(self.context.name, "postprocess"):
            outlast(call)
        return output


class AsyncQuick(Quick):
    async def infer(self, inputs: list[float], calls: list[Call]) -> list[float]:
        with at_work(self.context.name, "infer"):
            await asyncio.sleep(max(inputs))
        return inputs

    async def stream(self, item: float, call: Call) -> AsyncIterator[float]:
        with at_work(self.context.name, "stream"):
            for _ in range(int(item / STEP_S)):
                await asyncio.sleep(STEP_S)
                yield item


class AsyncLate(Quick):
    async def infer(self, inputs: list[float], calls: list[Call]) -> list[float]:
        with at_work(self.context.name, "infer"):
            while not all(call.cancelled for call in calls):
                await asyncio.sleep(STEP_S)
            await asyncio.sleep(LONGER_S)
        return inputs

    async def stream(self, item: float, call: Call) -> AsyncIterator[float]:
        with at_work(self.context.name, "stream"):
            try:
                while True:
                    await asyncio.sleep(STEP_S)
                    yield item
            finally:
                await asyncio.sleep(LONGER_S)


class Chatty(ModelHandler[int, str]):
    """Streams a megabyte as often as it is told to."""

    def stream(self, item: int) -> Iterator[str]:
        say("begun chatty stream")
        for _ in range(item):
            yield "x" * 2**20


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    yield
    say("leaving")
    await asyncio.sleep(float(os.environ.get("LEAVE_S", "0")))


MODELS = {
    "quick": Quick,
    "late": Late,
    "late-preprocess": LatePreprocess,
    "late-postprocess": LatePostprocess,
    "async-quick": AsyncQuick,
    "async-late": AsyncLate,
    "batched-quick": Quick,
    "batched-late": Late,
    "chatty": Chatty,
}
server = ModelServer(lifespan=lifespan)
for name in os.environ.get("MODELS", "quick").split():
    batching = Batching(max_size=4 if name.startswith("batched") else 1)
    server.add(name, MODELS[name], batching=batching)
app = server.build()


@app.get("/own/{s}")
async def own(s: float) -> float:
    say("begun own")
    await asyncio.sleep(s)
    return s
'''

FAILING = """
import os
import time

from mlserve import ModelHandler, ModelServer

FAIL = os.environ.get("FAIL")


class Failing(ModelHandler[str, str]):
    def load(self) -> None:
        print("load", flush=True)
        time.sleep(float(os.environ.get("LOAD_S", "0")))
        if FAIL == "load":
            raise OSError("There are no weights.")

    def examples(self) -> list[str]:
        return ["hello"]

    if FAIL == "warmup":

        def warmup(self) -> None:
            raise OSError("There is no memory.")

    def infer(self, inputs: list[str]) -> list[str]:
        if FAIL == "example":
            raise OSError("This is no example.")
        return inputs

    def unload(self) -> None:
        print("unload", flush=True)


server = ModelServer().add("m", Failing)
app = server.build()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A way to serve an application as a process."""

    command: list[str]
    attribute: str
    """What of the module is served."""
    options: tuple[str, ...] = ()
    sigterm_code: int = 0
    """The exit code after SIGTERM."""

    def serve(
        self, folder: Path, module: str = "slow", *options: str, **environment: Any
    ) -> AbstractContextManager[Served]:
        """Serve a module's application."""
        target = f"{module}:{self.attribute}"
        return serving(folder, target, *self.options, *options, command=self.command, **environment)


SERVERS = {
    "mlserve run": Server(command=RUN, attribute="server"),
    "uvicorn": Server(command=UVICORN, attribute="app", sigterm_code=-15),
    "uvicorn with a bound": Server(
        command=UVICORN,
        attribute="app",
        options=("--timeout-graceful-shutdown", "1"),
        sigterm_code=-15,
    ),
}


def write_slow_project(folder: Path) -> Path:
    """Write the modules `slow` and `failing` into a folder."""
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    (folder / "failing.py").write_text(FAILING, encoding="utf-8")
    return folder


def asking(path: str, value: object = None) -> bytes:
    """Write a request on a connection that is kept alive."""
    if value is None:
        return f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def predicting(model: str, s: float = 60.0) -> bytes:
    """Write a prediction that takes so long."""
    return asking(f"/v1/models/{model}/predict", s)


def streaming(model: str, s: float = 60.0) -> bytes:
    """Write a stream that takes so long."""
    return asking(f"/v1/models/{model}/stream", s)


class Caller:
    """
    One connection, on which something was sent, and all that it carries until its end.

    Args:
        served: The server.
        wire: What is sent at once.
        reads: Whether the answer is read.
    """

    def __init__(self, served: Served, wire: bytes = b"", *, reads: bool = True) -> None:
        self._socket = socket.create_connection(served.address(), 15)
        self._received = b""
        self._problem: OSError | None = None
        self._ended_at = 0.0
        self._thread = threading.Thread(target=self._read)
        if reads:
            self._thread.start()
        self.send(wire)

    def send(self, wire: bytes) -> None:
        self._socket.sendall(wire)

    def close(self) -> None:
        self._socket.close()

    def answers(self) -> list[Answer]:
        """Wait for the end of the connection and give the answers that it carried."""
        self._thread.join()
        assert self._problem is None, self._problem
        return answers_in(self._received)

    def answer(self) -> Answer:
        """Wait for the end of the connection and give its only answer."""
        (answer,) = self.answers()
        return answer

    def ended_at(self) -> float:
        """Wait for the end of the connection and give its moment on the monotonic clock."""
        self.answers()
        return self._ended_at

    def _read(self) -> None:
        with self._socket:
            try:
                while data := self._socket.recv(65_536):
                    self._received += data
            except OSError as exc:
                self._problem = exc
        self._ended_at = time.monotonic()


def outcome_of(answer: Answer) -> tuple[int, str, str | None]:
    """Give status, content type and error code of an answer or of a stream's last event."""
    text = events_of(answer)[-1] if answer.is_stream else answer.body.decode()
    found = json.loads(text)
    media_type = answer.headers["content-type"].partition(";")[0]
    code = found["error"]["code"] if isinstance(found, dict) else None
    return answer.status, media_type, code


def events_of(answer: Answer) -> list[str]:
    """Give what the events of a stream hold before its end, which must be there once."""
    *events, rest = answer.body.decode().split("\n\n")
    datas = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    assert (rest, datas.count("[DONE]"), datas[-1]) == ("", 1, "[DONE]")
    return datas[:-1]
