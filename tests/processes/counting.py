"""A handler that counts, in a process of its own."""

from typing import Any

from prometheus_client import Counter, Gauge
from tests.processes.handlers import Obedient

from mlserve import Call

HANDLED = Counter("test_replica_handled", "Requests that the replica of a test has seen.", ["what"])
LOADED = Gauge("test_replica_loaded", "Whether the replica of a test is loaded.")


class Counting(Obedient):
    """As `Obedient`; counts what it is asked for."""

    def load(self) -> None:
        LOADED.set(1)

    def preprocess(self, request: str, call: Call) -> str:
        call.annotate(prompt_tokens=3)
        return request

    def infer(self, inputs: list[str]) -> list[dict[str, Any]]:
        HANDLED.labels("batch").inc(len(inputs))
        return super().infer(inputs)
