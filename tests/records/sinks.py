"""Sinks and servers that the tests of records share."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import httpx2

from mlserve import ModelHandler, ModelServer
from mlserve.records import InferenceRecord, SinkOptions


class Doubling(ModelHandler[float, float]):
    def infer(self, inputs: list[float]) -> list[float]:
        return [2 * value for value in inputs]


class ListSink:
    """Keeps what it gets; may be told to fail, and to hold what it is given until `release`."""

    def __init__(self, *, holds: bool = False, **options: Any) -> None:
        self.options = SinkOptions(**{"max_wait_s": 0.0, **options})
        self.batches: list[list[InferenceRecord]] = []
        self.n_failures = 0
        """How many of the next calls of `open` and `write` raise."""
        self.n_calls = 0
        self.is_closed = False
        self.began = threading.Event()
        """Set once `write` is called."""
        self._holds = holds

    @property
    def records(self) -> list[InferenceRecord]:
        return [record for batch in self.batches for record in batch]

    def release(self) -> None:
        self._holds = False
        self._loop.call_soon_threadsafe(self._gate.set)

    async def open(self) -> None:
        self._loop, self._gate = asyncio.get_running_loop(), asyncio.Event()
        self.is_closed = False
        self._fail_if_told()

    async def write(self, records: Sequence[InferenceRecord]) -> None:
        self.n_calls += 1
        self.began.set()
        if self._holds:
            await self._gate.wait()
        self._fail_if_told()
        self.batches.append(list(records))

    async def close(self) -> None:
        self.is_closed = True

    def _fail_if_told(self) -> None:
        if self.n_failures:
            self.n_failures -= 1
            raise OSError("no space left on device")


def serving_doubles(*sinks: Any, **options: Any) -> ModelServer:
    return ModelServer(sinks=sinks, **options).add("double", Doubling)


def double(client: httpx2.Client, value: object = 1, request_id: str | None = None) -> float:
    """Ask for one answer, which is right whatever becomes of its record."""
    headers = {} if request_id is None else {"X-Request-Id": request_id}
    answer = client.post("/v1/models/double/predict", json=value, headers=headers)
    assert answer.status_code == 200, answer.text
    return float(answer.json())


def state_of(client: httpx2.Client, name: str = "ListSink") -> dict[str, Any]:
    """Give what `/ready` says of a sink."""
    sinks: list[dict[str, Any]] = client.get("/ready").json()["sinks"]
    return next(sink for sink in sinks if sink["name"] == name)
