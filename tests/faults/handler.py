"""
A model that fails as it is told: the payload names the fault, the rest is answered properly.

A fault is `stage:what`. Whatever the stage, an answer carries the id of its call and the digest of
its own text, so that an answer which went to somebody else can be told.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from pydantic import BaseModel
from tests.faults.notebook import Notebook

from mlserve import Call, InvalidInputError, ModelHandler

PRIVATE = "/srv/weights/secret.bin"
"""Stands in every exception's text; no client may ever see it."""
INFER_S = 0.002
N_CHUNKS = 5


class OutOfMemoryError(RuntimeError):
    """What torch raises, by its name: `torch.OutOfMemoryError` is a `RuntimeError`, too."""


class Ask(BaseModel):
    text: str
    fault: str = ""
    at: int = 2
    """At which chunk a stream fails, or above how many requests a batch does."""
    hold_s: float = 0.0
    """How long the stage that the fault names takes."""
    chunks: int = N_CHUNKS
    padding: int = 0
    """How many characters are added to each answer or chunk."""

    @property
    def stage(self) -> str:
        return self.fault.partition(":")[0]

    @property
    def what(self) -> str:
        return self.fault.partition(":")[2]


class Receipt(BaseModel):
    id: str
    digest: str
    pid: int
    """Which process has made it."""
    number: int = 0
    score: float = 0.0
    extra: Any = None
    padding: str = ""


def digest_of(text: str, number: int = 0) -> str:
    return hashlib.sha256(f"{number}:{text}".encode()).hexdigest()


ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: RuntimeError(PRIVATE),
    "value": lambda: ValueError(PRIVATE),
    "refused": lambda: InvalidInputError("This text is refused.", param="text"),
    "exit": lambda: SystemExit(PRIVATE),
    "interrupt": lambda: KeyboardInterrupt(PRIVATE),
    "cancelled": lambda: asyncio.CancelledError(PRIVATE),
    "generator_exit": lambda: GeneratorExit(PRIVATE),
    "stop": lambda: StopIteration(PRIVATE),
    "oom": lambda: OutOfMemoryError(f"CUDA out of memory. {PRIVATE}"),
    "oom_cpu": lambda: RuntimeError(f"DefaultCPUAllocator: not enough memory: {PRIVATE}"),
    "memory": lambda: MemoryError(PRIVATE),
}

# What `infer` gives in place of one output per input.
BATCHES: dict[str, Callable[[list[Any]], Any]] = {
    "short": lambda outputs: outputs[:-1],
    "long": lambda outputs: [*outputs, outputs[0]],
    "none": lambda outputs: None,
    "generator": lambda outputs: (output for output in outputs),
    "dict": lambda outputs: dict(enumerate(outputs)),
    "string": lambda outputs: "x" * len(outputs),
}

# The same for `stream`, which gives no batch: nothing at all, or what is no iterator of chunks.
STREAMS: dict[str, Callable[[Ask], Any]] = {
    "short": lambda item: iter(()),
    "long": lambda item: iter([[item.text, item.text]]),
    "none": lambda item: None,
    "generator": lambda item: iter([(letter for letter in item.text)]),
    "dict": lambda item: {"text": item.text},
    "string": lambda item: item.text,
}


def error_of(what: str) -> BaseException:
    """Make a new exception of this kind."""
    return ERRORS[what]()


def receipt_of(item: Ask, call: Call, digest: str, number: int = 0) -> Receipt:
    """Make an answer or a chunk in this process."""
    padding = "x" * item.padding
    return Receipt(
        id=call.request_id, digest=digest, pid=os.getpid(), number=number, padding=padding
    )


def spoiled(receipt: Receipt, what: str) -> Any:
    """Give an output that cannot be sent."""
    if what == "type":
        return 7
    changes = {"nan": {"score": float("nan")}, "infinite": {"score": float("-inf")}}
    return receipt.model_copy(update=changes.get(what, {"extra": object()}))


def suffer(item: Ask, stage: str) -> None:
    """Do what a fault of this stage asks for: take long, or raise."""
    if item.stage == stage:
        if item.hold_s:
            time.sleep(item.hold_s)  # stands for a slow model
        if item.what in ERRORS:
            raise error_of(item.what)


async def suffer_in_loop(item: Ask, stage: str) -> None:
    """Do the same on the event loop, without holding it up."""
    if item.stage == stage and item.hold_s:
        await asyncio.sleep(item.hold_s)  # stands for a slow model
        item = item.model_copy(update={"hold_s": 0.0})
    suffer(item, stage)


class FaultyHandler(ModelHandler[Ask, Receipt]):
    """
    Answers a text with its digest, unless the request asks for a fault.

    Args:
        notes: Where it notes its loads and what `infer` or `stream` begins with.
    """

    def __init__(self, notes: Notebook | None = None) -> None:
        self.notes = notes

    def load(self) -> None:
        self._note("load", str(os.getpid()))

    def examples(self) -> list[Ask]:
        return [Ask(text="example")]

    def preprocess(self, request: Ask) -> Ask:
        self._suffer(request, "preprocess")
        return request

    def infer(self, inputs: list[Ask], calls: list[Call]) -> Any:
        self._note("run", *(call.request_id for call in calls))
        time.sleep(INFER_S)  # stands for the model
        for item in inputs:
            self._suffer(item, "infer")
        return self._outputs(inputs)

    def postprocess(self, output: tuple[Ask, str], call: Call) -> Any:
        self._suffer(output[0], "postprocess")
        return self._receipt(output, call)

    def stream(self, item: Ask, call: Call) -> Any:
        self._note("run", call.request_id)
        self._suffer(item, "infer")
        if item.stage == "batch" and item.what in STREAMS:
            return STREAMS[item.what](item)
        return self._parts(item, call)

    def _outputs(self, inputs: list[Ask]) -> Any:
        for item in inputs:
            if item.fault == "batch:oom_above" and len(inputs) > item.at:
                raise error_of("oom")
        outputs = [self._in_place(item) for item in inputs]
        for item in inputs:
            if item.stage == "batch" and item.what in BATCHES:
                return BATCHES[item.what](outputs)
        return outputs

    def _receipt(self, output: tuple[Ask, str], call: Call) -> Any:
        item, digest = output
        receipt = receipt_of(item, call, digest)
        return spoiled(receipt, item.what) if item.stage == "output" else receipt

    def _suffer(self, item: Ask, stage: str) -> None:
        suffer(item, stage)

    def _note(self, topic: str, *texts: str) -> None:
        if self.notes is not None:
            self.notes.note(topic, *texts)

    def _in_place(self, item: Ask) -> Any:
        if item.stage == "place" and item.what in ERRORS:
            return error_of(item.what)
        return item, digest_of(item.text)

    def _parts(self, item: Ask, call: Call) -> Iterator[Any]:
        for number in range(item.chunks):
            if number == item.at:
                self._suffer(item, "place")
            time.sleep(INFER_S / N_CHUNKS)  # stands for the model
            part = receipt_of(item, call, digest_of(item.text, number), number)
            is_bad = item.stage == "output" and number == item.at
            yield spoiled(part, item.what) if is_bad else part
        self._suffer(item, "postprocess")


class AsyncFaultyHandler(FaultyHandler):
    """The same with hooks that run on the event loop."""

    async def preprocess(self, request: Ask) -> Ask:  # type: ignore[override]
        await suffer_in_loop(request, "preprocess")
        return request

    async def infer(self, inputs: list[Ask], calls: list[Call]) -> Any:
        self._note("run", *(call.request_id for call in calls))
        await asyncio.sleep(INFER_S)  # stands for the model
        for item in inputs:
            await suffer_in_loop(item, "infer")
        return self._outputs(inputs)

    async def postprocess(self, output: tuple[Ask, str], call: Call) -> Any:
        await suffer_in_loop(output[0], "postprocess")
        return self._receipt(output, call)

    async def stream(self, item: Ask, call: Call) -> AsyncIterator[Any]:
        self._note("run", call.request_id)
        for part in self._parts(item, call):
            yield part
