"""Handlers that other processes can import, and that do what a request tells them to."""

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlserve import Batching, InvalidInputError, ModelFailedError, ModelHandler
from mlserve.handler import Call

LONG_S = 300.0


class AcceleratorError(RuntimeError):
    """As torch raises when a kernel has failed."""


def hold(path: Path) -> None:
    """Tell that a hook has come here, and wait until the test lets everybody go."""
    path.touch()
    while not path.with_suffix(".go").exists():
        time.sleep(0.002)


def break_down(way: str) -> None:
    """End this process, or have it end, in one of the ways that there are."""
    if way == "segfault":
        ctypes.string_at(0)
    elif way == "exit":
        os._exit(3)
    elif way == "abort":
        os.abort()
    elif way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "hang":
        threading.Event().wait(LONG_S)
    elif way == "hang with the GIL":
        ctypes.PyDLL(None).sleep(int(LONG_S))
    elif way == "break the device":
        raise AcceleratorError("CUDA error: device-side assert triggered")
    elif way == "open no more files":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    elif way == "raise":
        raise RuntimeError("It was told to.")


def follow(order: str) -> None:
    """
    Do what a request says: `way`, `once PATH way`, `hold PATH`, `sleep SECONDS`, or nothing.

    `once` does it only if PATH is not there yet, and makes it.
    """
    verb, _, rest = order.partition(" ")
    if verb == "once":
        path, _, way = rest.partition(" ")
        with suppress(FileExistsError):
            Path(path).touch(exist_ok=False)
            break_down(way)
    elif verb == "hold":
        hold(Path(rest))
    elif verb == "sleep":
        time.sleep(float(rest))
    else:
        break_down(order)


class Obedient(ModelHandler[str, dict[str, Any]]):
    """Follows each request of a batch, and says what it was and which process ran it with whom."""

    batching = Batching(max_size=16)

    def infer(self, inputs: list[str]) -> list[dict[str, Any]]:
        for order in inputs:
            follow(order)
        return [{"text": text, "pid": os.getpid(), "n": len(inputs)} for text in inputs]

    def stream(self, item: str) -> Iterator[dict[str, Any]]:
        for part in item.split("; "):
            follow(part)
            yield {"text": part, "pid": os.getpid()}


class Asynchronous(ModelHandler[str, dict[str, Any]]):
    """As `Obedient`, on the event loop."""

    batching = Batching(max_size=16)

    async def infer(self, inputs: list[str]) -> list[dict[str, Any]]:
        for order in inputs:
            follow(order)
        return [{"text": text, "pid": os.getpid(), "n": len(inputs)} for text in inputs]

    async def stream(self, item: str) -> AsyncIterator[dict[str, Any]]:
        for part in item.split("; "):
            follow(part)
            yield {"text": part, "pid": os.getpid()}


class WarmedUp(Obedient):
    """Follows an order when it is loaded and when it is warmed up."""

    def __init__(self, load: str = "", example: str = "") -> None:
        self._load = load
        self._example = example

    def load(self) -> None:
        follow(self._load)

    def examples(self) -> list[str]:
        return [self._example] if self._example else []


class Once(Obedient):
    """May not be run again."""

    idempotent = False


class Preprocessing(Obedient):
    """Follows requests before they are queued, and after."""

    def preprocess(self, request: str) -> str:
        before, _, rest = request.partition(" | ")
        follow(before)
        return rest

    def postprocess(self, output: dict[str, Any]) -> dict[str, Any]:
        _, _, after = output["text"].partition(" | ")
        follow(after)
        return output


class Noting(ModelHandler[str, str]):
    """
    Notes in a file what is done to it, and does chores.

    Args:
        notes: The file.
        unload: What to do in `unload`.
    """

    batching = Batching(max_size=1)

    def __init__(self, notes: Path, unload: str = "") -> None:
        self._notes = notes
        self._unload = unload
        self._kept: list[bytes] = []

    def load(self) -> None:
        self._note("load")

    def infer(self, inputs: list[str]) -> list[str]:
        return [self._chore(*order.split()) for order in inputs]

    def stream(self, item: str) -> Iterator[str]:
        for number in range(int(item)):
            yield str(number)

    def unload(self) -> None:
        follow(self._unload)
        self._note("unload")

    def _note(self, event: str) -> None:
        with self._notes.open("a") as file:
            file.write(f"{event} {os.getpid()}\n")

    def _chore(self, verb: str = "", *args: str) -> str:
        if verb == "leak":
            self._kept.append(b"x" * int(args[0]))
        elif verb == "fork" and os.fork() == 0:
            time.sleep(LONG_S)
            os._exit(0)
        elif verb == "thread":
            threading.Thread(target=time.sleep, args=(LONG_S,), daemon=False).start()
        elif verb == "variable":
            return os.environ.get(args[0], "")
        elif verb == "environment":
            return Path("/proc/self/environ").read_text()
        elif verb == "place":
            return f"{self.context.device} {self.context.replica} {self.context.threads}"
        return str(os.getpid())


class Sickly(ModelHandler[str, str]):
    """
    Fails while a file is there.

    Args:
        broken: With it, `infer` raises.
        ill: With it, `health` does.
        way: What `health` does then.
    """

    batching = Batching(max_size=1)

    def __init__(self, broken: Path, ill: Path = Path("/nowhere"), way: str = "raise") -> None:
        self._broken = broken
        self._ill = ill
        self._way = way

    def infer(self, inputs: list[str]) -> list[str]:
        if self._broken.exists():
            raise RuntimeError("It is broken.")
        return [str(os.getpid()) for _ in inputs]

    def examples(self) -> list[str]:
        return ["a"]

    def health(self) -> None:
        if self._ill.exists():
            break_down(self._way)


class Telling(ModelHandler[str, dict[str, Any]]):
    """Says what a hook can know of its request."""

    def infer(self, inputs: list[str], calls: list[Call]) -> list[dict[str, Any]]:
        for call in calls:
            call.annotate(seen=call.request_id, pid=os.getpid())
            if call.request_id == "with a lock":
                call.annotate(lock=threading.Lock())
        return [self._told(text, call) for text, call in zip(inputs, calls, strict=True)]

    def _told(self, text: str, call: Call) -> dict[str, Any]:
        return {
            "text": text,
            "request_id": call.request_id,
            "remaining_s": call.remaining_s,
            "headers": dict(call.headers),
        }


class Careful(ModelHandler[str, dict[str, Any]]):
    """Notes what it runs, and looks whether somebody still waits."""

    batching = Batching(max_size=1)

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def infer(self, inputs: list[str], calls: list[Call]) -> list[dict[str, Any]]:
        self._note(inputs[0])
        if inputs[0] == "until cancelled":
            self._wait(calls[0])
        else:
            follow(inputs[0])
        return [{"text": inputs[0]}]

    def stream(self, item: str, call: Call) -> Iterator[dict[str, Any]]:
        try:
            if item == "until cancelled":
                yield {"text": "waiting"}
                self._wait(call)
            for number in range(100):
                self._note(f"chunk {number}")
                yield {"text": str(number)}
        finally:
            self._note("closed")

    def _wait(self, call: Call) -> None:
        while not call.cancelled:
            time.sleep(0.002)
        self._note("cancelled")

    def _note(self, event: str) -> None:
        with self._notes.open("a") as file:
            file.write(f"{event}\n")


class Limited(ModelHandler[int, dict[str, int]]):
    """Has memory for so many requests, whose costs and keys are what they are."""

    batching = Batching(max_size=8)

    def __init__(self, most: int = 8, *, has_costs: bool = False) -> None:
        self._most = most
        self._has_costs = has_costs

    def cost(self, item: int) -> int:
        return item if self._has_costs else 1

    def batch_key(self, item: int) -> int:
        return 0 if self._has_costs else item % 2

    def infer(self, inputs: list[int]) -> list[dict[str, int]]:
        if len(inputs) > self._most:
            raise MemoryError("It is too much.")
        return [
            {"value": value, "n": len(inputs), "odd": value % 2, "sum": sum(inputs)}
            for value in inputs
        ]


class Voluminous(ModelHandler[int, str]):
    """Streams chunks that are each more than leaves a server in one piece."""

    def stream(self, item: int) -> Iterator[str]:
        for number in range(item):
            yield f"{number} " + "x" * 70_000


class Anything(ModelHandler[Any, Any]):
    """Gives back what it gets, and for words what the words say."""

    batching = Batching(max_size=8)

    def infer(self, inputs: list[Any]) -> list[Any]:
        return [self._answer(item) for item in inputs]

    def stream(self, item: Any) -> Iterator[Any]:
        yield item
        yield (lambda: None) if isinstance(item, str) else item

    def _answer(self, item: Any) -> Any:
        if isinstance(item, str):
            return said(item)
        if hasattr(item, "tobytes"):
            item *= 2  # in place: it is this process's own
            return item.tobytes()
        return item + item


def said(word: str) -> Any:
    """Give what a word stands for, or the word."""
    error = InvalidInputError("Say something else.")
    if word == "unsendable":
        return lambda: None
    if word == "with a lock":
        error.lock = threading.Lock()  # type: ignore[attr-defined]  # as users may
    elif word == "with a strict one":
        error.cause = StrictError(code=3)  # type: ignore[attr-defined]  # as users may
    elif word == "oddly":
        return OddError("a", "b")
    elif word == "another is down":
        return ModelFailedError("another", "it is down")
    elif word != "refuse":
        return word
    return error


class Unwelcome:
    """Can be sent, and cannot be received."""

    def __reduce__(self) -> tuple[Any, ...]:
        return follow, ("raise",)


class StrictError(Exception):
    """Cannot be received: its constructor takes no message."""

    def __init__(self, *, code: int) -> None:
        super().__init__(code)


class OddError(InvalidInputError):
    """Has a constructor that takes something else than its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")
        self.second = second
