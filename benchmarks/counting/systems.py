"""
What is counted: mlserve with everything as it is by default, and the same written by hand.

The models do nothing, and streams wait before each chunk until they are told to go on.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.params import Depends as Dependency
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel

from mlserve import Batching, Limits, ModelHandler, ModelServer, api_keys

__all__ = ["BODY", "SYSTEMS", "Item", "System"]

BODY = b'{"x":1.5}'
_KEY = "a-key-for-the-benchmarks"


class Item(BaseModel):
    """What is asked, and what is answered."""

    x: float


class Turns:
    """Lets streams go on one chunk at a time, and holds up models."""

    def __init__(self) -> None:
        self._turns: SimpleQueue[None] = SimpleQueue()
        self._waiting: list[asyncio.Future[None]] = []
        self.is_open = threading.Event()
        """Whether models answer."""
        self.is_open.set()

    def give(self) -> None:
        """Let a stream go on; called on the event loop."""
        if self._waiting:
            self._waiting.pop().set_result(None)
        else:
            self._turns.put(None)

    def wait(self) -> None:
        """Wait in a thread until a stream may go on."""
        self._turns.get()

    async def wait_here(self) -> None:
        """Wait in the event loop until a stream may go on."""
        if self._turns.qsize():
            self._turns.get_nowait()
            return
        self._waiting.append(asyncio.get_running_loop().create_future())
        await self._waiting[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One application and where it is asked."""

    make: Callable[[Turns], Any]
    """Gives the application."""
    path: str
    is_ours: bool = False
    """Whether it is served as `mlserve run` serves; else by plain uvicorn."""
    header: str = ""
    """What stands in the head of each request besides, if anything."""
    is_full: bool = False
    """Whether its model has two requests, for ever, and no room for a third."""

    @property
    def status(self) -> int:
        """What it answers."""
        return 503 if self.is_full else 200


def _mlserve(
    kind: Callable[[Turns], Any], guards: Sequence[Dependency] = (), *, is_full: bool = False
) -> Callable[[Turns], Any]:
    def make(turns: Turns) -> Any:
        limits = Limits(max_queue_size=1 if is_full else 4096)
        batching = Batching(max_size=1) if is_full else Batching()
        server = ModelServer(dependencies=guards)
        return server.add("m", kind(turns), limits=limits, batching=batching).build()

    return make


def _in_thread(turns: Turns) -> ModelHandler[Item, Item]:
    class Same(ModelHandler[Item, Item]):
        """Gives what it was given."""

        def infer(self, inputs: list[Item]) -> list[Item]:
            turns.is_open.wait()
            return inputs

    return Same()


def _in_loop(turns: Turns) -> ModelHandler[Item, Item]:
    class Same(ModelHandler[Item, Item]):
        """Gives what it was given, in the event loop."""

        async def infer(self, inputs: list[Item]) -> list[Item]:
            return inputs

    return Same()


def _stream_in_thread(turns: Turns) -> ModelHandler[Item, Item]:
    class Repeated(ModelHandler[Item, Item]):
        """Gives what it was given, again and again."""

        def stream(self, item: Item) -> Iterator[Item]:
            for _ in range(int(item.x)):
                turns.wait()
                yield Item(x=item.x)

    return Repeated()


def _stream_in_loop(turns: Turns) -> ModelHandler[Item, Item]:
    class Repeated(ModelHandler[Item, Item]):
        """Gives what it was given, again and again, in the event loop."""

        async def stream(self, item: Item) -> AsyncIterator[Item]:
            for _ in range(int(item.x)):
                await turns.wait_here()
                yield Item(x=item.x)

    return Repeated()


def _by_hand(turns: Turns) -> FastAPI:
    app = FastAPI()

    @app.post("/predict")
    async def predict(item: Item) -> Item:
        if not turns.is_open.is_set():
            await turns.wait_here()
        return item

    @app.post("/stream")
    async def stream(item: Item) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for _ in range(int(item.x)):
                await turns.wait_here()
                yield f"data: {Item(x=item.x).model_dump_json()}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/events", response_class=EventSourceResponse)
    async def events(item: Item) -> AsyncIterator[Item]:
        for _ in range(int(item.x)):
            await turns.wait_here()
            yield Item(x=item.x)

    return app


_PREDICT, _STREAM = "/v1/models/m/predict", "/v1/models/m/stream"

SYSTEMS = {
    "mlserve": System(make=_mlserve(_in_thread), path=_PREDICT, is_ours=True),
    "mlserve keys": System(
        make=_mlserve(_in_thread, [Depends(api_keys([_KEY]))]),
        path=_PREDICT,
        is_ours=True,
        header=f"X-API-Key: {_KEY}\r\n",
    ),
    "mlserve full": System(
        make=_mlserve(_in_thread, is_full=True), path=_PREDICT, is_ours=True, is_full=True
    ),
    "mlserve async": System(make=_mlserve(_in_loop), path=_PREDICT, is_ours=True),
    "mlserve stream": System(make=_mlserve(_stream_in_thread), path=_STREAM, is_ours=True),
    "mlserve async stream": System(make=_mlserve(_stream_in_loop), path=_STREAM, is_ours=True),
    "FastAPI": System(make=_by_hand, path="/predict"),
    "FastAPI stream": System(make=_by_hand, path="/stream"),
    "FastAPI events": System(make=_by_hand, path="/events"),
}
"""By name. The models of `mlserve` run in threads, those of `mlserve async` in the event loop."""
