"""A model whose answers say how many requests it had served before; other processes import it."""

import time
from collections.abc import Iterator

from tests.processes.handlers import follow

from mlserve import Batching, ModelHandler

BATCH_SIZE = 4
BATCH_S = 0.002


class Ranked(ModelHandler[str, tuple[int, int], int]):
    """
    Does what a request says, such as `hold PATH`.

    Gives its rank, and how many were served between its arrival and its own turn.
    """

    batching = Batching(max_size=BATCH_SIZE)
    n_served = 0

    def preprocess(self, request: str) -> tuple[str, int]:
        return request, self.n_served

    def infer(self, inputs: list[tuple[str, int]]) -> list[tuple[int, int]]:
        for order, _ in inputs:
            follow(order)
        time.sleep(BATCH_S)
        ranks = range(self.n_served, self.n_served + len(inputs))
        self.n_served = ranks.stop
        return [(rank, rank - before) for rank, (_, before) in zip(ranks, inputs, strict=True)]

    def stream(self, item: tuple[str, int]) -> Iterator[int]:
        follow(item[0])
        self.n_served += 1
        yield self.n_served - 1


def key_of(name: str) -> str:
    """Give the API key that is called so."""
    return f"canary-key-of-{name}"
