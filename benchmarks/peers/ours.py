"""
mlserve: everything as it is by default, so with access log, metrics, request ids and deadlines.

    mlserve run benchmarks.peers.ours:server
    uvicorn benchmarks.peers.ours:app --no-access-log
"""

import os
from collections.abc import Iterator

from benchmarks.peers.model import OBJECTIVE_S, WORKLOAD, doubled
from fastapi import Depends
from pydantic import BaseModel

from mlserve import Limits, ModelHandler, ModelServer, api_keys


class Number(BaseModel):
    """What is doubled."""

    x: float


class Doubled(BaseModel):
    """The answer."""

    y: float


class Double(ModelHandler[Number, Doubled]):
    """Doubles numbers in a thread."""

    def infer(self, inputs: list[Number]) -> list[Doubled]:
        """Double a batch."""
        return [Doubled(y=y) for y in doubled([number.x for number in inputs])]


class DoubleInline(ModelHandler[Number, Doubled]):
    """Doubles numbers without leaving the event loop: for what takes no time."""

    async def infer(self, inputs: list[Number]) -> list[Doubled]:
        """Double a batch."""
        return [Doubled(y=y) for y in doubled([number.x for number in inputs])]


class Count(BaseModel):
    """How many events are wanted."""

    n: int


class Event(BaseModel):
    """One of them."""

    i: int


class Counting(ModelHandler[Count, Event]):
    """Streams events as fast as they are taken."""

    def stream(self, item: Count) -> Iterator[Event]:
        """Count."""
        for i in range(item.n):
            yield Event(i=i)


def _server() -> ModelServer:
    if WORKLOAD == "empty":
        return ModelServer()
    if WORKLOAD == "minilm":
        from mlserve.huggingface import TextEmbedding

        return ModelServer().add("model", TextEmbedding(os.environ["BENCHMARK_MODEL"]))
    if WORKLOAD == "sse":
        return ModelServer().add("model", Counting)
    handler = DoubleInline if os.environ.get("BENCHMARK_INLINE") else Double
    limits = Limits() if OBJECTIVE_S is None else Limits(timeout_s=OBJECTIVE_S)
    key = os.environ.get("BENCHMARK_KEY")
    guards = [Depends(api_keys([key]))] if key else []
    return ModelServer(dependencies=guards).add("model", handler, limits=limits)


server = _server()
if not os.environ.get("BENCHMARK_OWN_SERVER"):
    app = server.build()
