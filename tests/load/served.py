"""What the load tests serve in a process of its own."""

import time
from collections.abc import Iterator
from typing import ClassVar

from pydantic import BaseModel

from mlserve import Batching, Limits, ModelHandler, ModelServer, ServerSettings
from mlserve.testing import Echo, EchoHandler


class Order(BaseModel):
    """How much is wanted."""

    n_bytes: int
    n_chunks: int = 1


class Flood(ModelHandler[Order, str]):
    """Gives as much as is asked for, as fast as it is taken."""

    n_made: ClassVar[int] = 0
    """How many chunks were made; written by the threads of streams."""

    def infer(self, inputs: list[Order]) -> list[str]:
        return ["x" * item.n_bytes for item in inputs]

    def stream(self, item: Order) -> Iterator[str]:
        for _ in range(item.n_chunks):
            Flood.n_made += 1
            yield "x" * item.n_bytes


class Crowded(EchoHandler):
    """Takes 20 ms a request, one at a time; few may wait."""

    batching = Batching(max_size=1)

    def infer(self, inputs: list[Echo]) -> list[Echo]:
        time.sleep(0.02)  # stands for the model
        return inputs


server = ModelServer(title="load", settings=ServerSettings(startup_wait_s=10))
server.add("echo", EchoHandler).add("flood", Flood)
server.add("crowded", Crowded, limits=Limits(max_queue_size=8))
app = server.build()


@app.get("/chunks")
async def chunks() -> int:
    return Flood.n_made
