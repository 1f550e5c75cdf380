"""
The batching recipe that is found everywhere: FastAPI, a queue, a task, a fixed window.

    uvicorn benchmarks.peers.recipe:app --no-access-log
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.model import MAX_SIZE, WINDOW_S, WORKLOAD, doubled
from fastapi import FastAPI
from pydantic import BaseModel

Waiting = tuple[Any, asyncio.Future[Any]]


async def work(queue: asyncio.Queue[Waiting], model: Any) -> None:
    """Gather requests for 5 ms, at most 32, and have a thread compute."""
    loop = asyncio.get_running_loop()
    while True:
        batch = [await queue.get()]
        end = loop.time() + WINDOW_S
        while len(batch) < MAX_SIZE and (left_s := end - loop.time()) > 0:
            try:
                batch.append(await asyncio.wait_for(queue.get(), left_s))
            except TimeoutError:
                break
        try:
            outputs = await loop.run_in_executor(None, model, [item for item, _ in batch])
        except Exception as exc:  # noqa: BLE001 - the callers are told
            outputs = [exc] * len(batch)
        for (_, future), output in zip(batch, outputs, strict=True):
            if future.done():
                continue
            if isinstance(output, Exception):
                future.set_exception(output)
            else:
                future.set_result(output)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model and start the task."""
    model: Any = doubled
    if WORKLOAD == "minilm":
        from benchmarks.peers.encoder import Encoder

        model = Encoder()
    app.state.queue = asyncio.Queue()
    task = asyncio.create_task(work(app.state.queue, model))  # noqa: TID251 - as everybody does
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


class Number(BaseModel):
    """What is doubled."""

    x: float


class Doubled(BaseModel):
    """The answer."""

    y: float


class Text(BaseModel):
    """What is encoded."""

    text: str


class Embedding(BaseModel):
    """Its vector."""

    embedding: list[float]


async def ask(item: Any) -> Any:
    """Queue one item and wait for what comes of it."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    await app.state.queue.put((item, future))
    return await future


@app.post("/double")
async def double(number: Number) -> Doubled:
    """Double a number."""
    return Doubled(y=await ask(number.x))


@app.post("/embed")
async def embed(text: Text) -> Embedding:
    """Encode a text."""
    return Embedding(embedding=await ask(text.text))
