"""Models that do to each request what it orders, in every kind of hook and place."""

import asyncio
from collections.abc import Callable
from datetime import date
from typing import Any

from fastapi import Depends
from pydantic import BaseModel, ConfigDict
from starlette.middleware import Middleware
from tests.execution.stepping import Stepping
from tests.http.waiting import until

from mlserve import (
    Batching,
    Binary,
    Call,
    DeadlineExceededError,
    InvalidInputError,
    Limits,
    ModelHandler,
    ModelServer,
    QueueFullError,
    Replicas,
    ServerSettings,
    api_keys,
)
from mlserve.records import CallbackSink, InferenceRecord, SinkOptions

KEY = "canary-4711-key-of-a-client"
ADMIN = "canary-4711-key-of-an-admin"
KEYS = [f"ci={KEY}", f"ops:admin={ADMIN}"]
HOOKS = ("preprocess", "cost", "batch_key", "infer", "postprocess")


class OutOfMemoryError(RuntimeError):
    """What torch raises, by its name."""


class UnspeakableError(Exception):
    """An error that cannot be written."""

    def __str__(self) -> str:
        raise RuntimeError


ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: RuntimeError("internal"),
    "value": lambda: ValueError("internal"),
    "refused": lambda: InvalidInputError("This is refused.", param="what"),
    "full": lambda: QueueFullError("m", 7),
    "late": lambda: DeadlineExceededError("infer", 1.0),
    "unspeakable": UnspeakableError,
    "exit": lambda: SystemExit(3),
    "stop": lambda: StopIteration("internal"),
    "memory": lambda: MemoryError("internal"),
    "device memory": lambda: OutOfMemoryError("CUDA out of memory."),
}


class Order(BaseModel):
    """What is to happen: `error` raises in `hook`, `output` is what comes out of it."""

    model_config = ConfigDict(extra="forbid")

    text: str = ""
    hook: str = ""
    error: str = ""
    output: str = ""
    score: float = 0.0

    def obey(self, hook: str) -> None:
        if self.hook == hook and self.error in ERRORS:
            error = ERRORS[self.error]()
            raise error


class Receipt(BaseModel):
    text: str
    score: float = 0.0
    headers: dict[str, str] = {}
    extra: Any = None


def output_of(order: Order, call: Call) -> Any:
    """Give what should come out."""
    circle: list[Any] = []
    circle.append(circle)
    if order.output == "late":
        until(lambda: call.cancelled)
    outputs: dict[str, Any] = {
        "no receipt": {"text": 1},
        "nothing": None,
        "NaN": Receipt(text="", score=float("nan")),
        "deep NaN": Receipt(text="", extra=[float("inf")]),
        "object": Receipt(text="", extra=object()),
        "circle": Receipt(text="", extra=circle),
        "surrogate": Receipt(text="\ud800"),
        "bytes": Receipt(text="", extra=b"\xff"),
        "in place": RuntimeError("internal"),
        "refused in place": InvalidInputError("This one is refused."),
    }
    good = Receipt(text=order.text, headers=dict(call.headers))
    return outputs.get(order.output, good)


class Obeying(ModelHandler[Order, Receipt]):
    """Every hook in a thread or in a process."""

    def preprocess(self, request: Order, call: Call) -> Order:
        call.annotate(n_characters=len(request.text), prompt_tokens=3)
        request.obey("preprocess")
        return request

    def cost(self, item: Order) -> int:
        item.obey("cost")
        return 1 + len(item.text)

    def batch_key(self, item: Order) -> str:
        item.obey("batch_key")
        return item.text[:1]

    def infer(self, inputs: list[Order], calls: list[Call]) -> list[Any]:
        for order in inputs:
            order.obey("infer")
        if inputs[0].output == "too few":
            return []
        if inputs[0].output == "no list":
            return "x"  # type: ignore[return-value]  # on purpose
        return [(order, output_of(order, call)) for order, call in zip(inputs, calls, strict=True)]

    def postprocess(self, output: Any, call: Call) -> Receipt:
        order, receipt = output
        order.obey("postprocess")
        call.annotate(completion_tokens=2)
        if isinstance(receipt, Exception):
            raise receipt
        return receipt  # type: ignore[no-any-return]  # whatever was ordered


class Plain(ModelHandler[Order, Receipt]):
    """No hooks but the one."""

    def infer(self, inputs: list[Order], calls: list[Call]) -> list[Any]:
        for order in inputs:
            order.obey("infer")
        return [output_of(order, call) for order, call in zip(inputs, calls, strict=True)]


class AsyncObeying(ModelHandler[Order, Receipt]):
    """Every hook on the event loop."""

    async def preprocess(self, request: Order, call: Call) -> Order:
        return Obeying().preprocess(request, call)

    async def infer(self, inputs: list[Order], calls: list[Call]) -> list[Any]:
        if inputs[0].output == "late":
            await asyncio.to_thread(until, lambda: calls[0].cancelled)
        return Obeying().infer(inputs, calls)

    async def postprocess(self, output: Any, call: Call) -> Receipt:
        return Obeying().postprocess(output, call)


MEDIA_TYPES = [
    "image/gif",
    "text/plain",
    "text/plain; charset=utf-8",
    "text/html; charset=latin-1",
    "application/json",
    "application/json; charset=utf-8",
    "text/event-stream",
    "text/event-stream; charset=utf-8",
    "",
    "   ",
    "no type at all",
    "TEXT/PLAIN",
    "text/ünï",
]
BROKEN_MEDIA_TYPES = [
    "text/plain\nx-injected: yes",
    "a/b\r\n\r\n<html>",
    "a/b\r",
    "a/b\0",
    "a/\x7f",
]
"""What no header may hold."""


class Picture(BaseModel):
    media_type: str
    content: str = "GIF89a"


class Binaries(ModelHandler[Picture, Binary]):
    def infer(self, inputs: list[Picture]) -> list[Binary]:
        return [Binary(picture.content.encode(), picture.media_type) for picture in inputs]


def request_to(
    model: str, body: bytes, *lines: bytes, path: str = "/v1/models/{}/predict"
) -> bytes:
    """Write a request; `lines` are whole header lines without their ends."""
    head = [b"POST %b HTTP/1.1" % path.format(model).encode(), b"Host: test"]
    head += [*lines, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, b"", b""]) + body


def server_of(records: list[InferenceRecord], middleware: list[Middleware]) -> ModelServer:
    """Make a server of all kinds of models, whose sinks keep all bodies."""
    sink = CallbackSink(records.append, options=SinkOptions(keep_payloads=True))
    settings = ServerSettings(forward_headers=("X-Color", "accept"))
    server = ModelServer(settings=settings, middleware=middleware, sinks=[sink])
    limits = Limits(priorities=True, max_body_bytes=2000)
    batching = Batching(max_size=4, max_cost=100)
    server.add("sync", Obeying, batching=batching, limits=limits)
    server.add("async", AsyncObeying, batching=batching)
    server.add("plain", Plain)
    server.add("binary", Binaries)
    server.add("steps", Stepping)
    server.add("guarded", Obeying, dependencies=[Depends(api_keys(KEYS))])
    server.add("process", Obeying, replicas=Replicas(placement="process"))
    server.add("old", Plain).add("old", Plain, version="v2")
    return server.deprecate("v1", name="old", since=date(2026, 1, 1), sunset=date(2099, 1, 1))
