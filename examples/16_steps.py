"""
A model that works in steps: all requests advance together, each enters and leaves when it likes.

    mlserve run 16_steps:server
    curl -N --json 2.0 http://127.0.0.1:8000/v1/models/root/stream

It finds square roots as Heron of Alexandria did. A language model that computes the next token of
each request, or a diffusion model that removes some noise from each picture, has the same shape.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import httpx2
import numpy as np
from pydantic import Field

from mlserve import Advance, ModelServer, SteppedHandler
from mlserve.testing import running


@dataclass(eq=False)
class Search:
    value: float
    guess: float


class SquareRoots(SteppedHandler[Annotated[float, Field(gt=0, le=1e12)], float]):
    slots = 64  # so many requests at once; the next ones wait

    def load(self) -> None:
        self.searches: list[Search] = []

    def examples(self) -> list[float]:
        return [2.0]

    def admit(self, item: float) -> Search:
        self.searches.append(Search(item, guess=max(1.0, item)))
        return self.searches[-1]

    def step(self) -> list[Advance]:
        guesses = np.array([search.guess for search in self.searches])
        values = np.array([search.value for search in self.searches])
        better = (guesses + values / guesses) / 2  # one step of all
        advances = []
        for search, guess in zip(self.searches, better.tolist(), strict=True):
            is_near = abs(guess - search.guess) <= 1e-9 * guess
            search.guess = guess
            advances.append(Advance(search, [guess], is_finished=is_near))
        self.searches = [a.sequence for a in advances if not a.is_finished]
        return advances

    def evict(self, sequence: Search) -> None:  # its client has left
        self.searches.remove(sequence)

    def postprocess(self, output: list[float]) -> float:  # of `predict`: all chunks of a request
        return output[-1]


server = ModelServer(title="Square roots").add("root", SquareRoots)
PATH = "/v1/models/root/predict"


def check(client: httpx2.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda n: client.post(PATH, json=n), range(1, 10))
        assert np.allclose([answer.json() for answer in answers], np.sqrt(np.arange(1, 10)))
    with client.stream("POST", "/v1/models/root/stream", json=2) as stream:
        print("\n".join(line for line in stream.iter_lines() if line))


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
