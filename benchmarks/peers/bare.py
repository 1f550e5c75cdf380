"""
Bare FastAPI: the same endpoints written by hand, without any of the features and without batches.

    uvicorn benchmarks.peers.bare:app --no-access-log
"""

from collections.abc import AsyncIterator

from benchmarks.peers.model import doubled
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel

app = FastAPI()


class Number(BaseModel):
    """What is doubled."""

    x: float


class Doubled(BaseModel):
    """The answer."""

    y: float


class Count(BaseModel):
    """How many events are wanted."""

    n: int


class Event(BaseModel):
    """One of them."""

    i: int


@app.post("/async")
async def double_in_loop(number: Number) -> Doubled:
    """Stay in the event loop: for what takes no time."""
    return Doubled(y=doubled([number.x])[0])


@app.post("/def")
def double_in_thread(number: Number) -> Doubled:
    """Go to a thread of FastAPI's pool: for what takes time."""
    return Doubled(y=doubled([number.x])[0])


@app.post("/stream")
async def stream(count: Count) -> StreamingResponse:
    """Stream events from an asynchronous generator: no thread is asked for each."""

    async def events() -> AsyncIterator[str]:
        for i in range(count.n):
            yield f"data: {Event(i=i).model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/events", response_class=EventSourceResponse)
async def events(count: Count) -> AsyncIterator[Event]:
    """Stream events as FastAPI itself writes them."""
    for i in range(count.n):
        yield Event(i=i)
