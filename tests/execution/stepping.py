"""A stepped handler that does to each sequence what its request orders."""

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from mlserve import Advance, Call, InvalidInputError, SteppedHandler


def left_at_the_end(stream: AsyncIterator[Any]) -> "aclosing[AsyncGenerator[Any]]":
    """Leave a stream at the end of a `with`, as a client does that has read enough."""
    return aclosing(cast("AsyncGenerator[Any]", stream))


class Sequence:
    """One request that runs."""

    def __init__(self, order: str, n: int) -> None:
        self.order = order
        self.n = n
        self.at = 0


class Stepping(SteppedHandler[str, list[int], int]):
    """
    Counts from 0 to the number after the colon, or fails at it: `count:3`, `raise:1`.

    `admit` refuses, `raise` fails the step, `error` fails the sequence alone, `memory` runs out of
    memory as long as another sequence runs, `mute` never says anything, `odd` brings a chunk of the
    wrong type, `kill` ends the process, `hang` does not return.
    """

    slots = 4

    def __init__(self) -> None:
        self.running: list[Sequence] = []
        self.together: list[int] = []
        self.evicted: list[str] = []
        self.calls: list[Call] = []

    def examples(self) -> list[str]:
        return ["count:2"]

    def admit(self, item: str, call: Call) -> Sequence:
        order, _, n = item.partition(":")
        if order == "admit":
            raise InvalidInputError("There is no such order.")
        if order == "crash":
            raise KeyError("internal")
        self.calls.append(call)
        self.running.append(Sequence(order, int(n)))
        return self.running[-1]

    def step(self) -> list[Advance]:
        self.together.append(len(self.running))
        for sequence in self.running:  # before anything changes: it may be called again
            self._break(sequence)
        advances = []
        for sequence in list(self.running):
            if sequence.order == "mute":
                continue
            is_due = sequence.at == sequence.n
            chunks: list[Any] = [] if is_due else [sequence.at]
            error = RuntimeError("internal") if is_due and sequence.order == "error" else None
            if sequence.order == "odd" and sequence.at == 1:
                chunks = ["no number"]
            sequence.at += 1
            if is_due:
                self.running.remove(sequence)
            advances.append(Advance(sequence, chunks, is_finished=is_due, error=error))
        return advances

    def _break(self, sequence: Sequence) -> None:
        if sequence.at != sequence.n:
            return
        if sequence.order == "raise":
            raise RuntimeError("internal")
        if sequence.order == "memory" and len(self.running) > 1:
            raise MemoryError
        if sequence.order == "kill":
            os._exit(3)
        if sequence.order == "hang":
            time.sleep(1e3)

    def evict(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.evicted.append(sequence.order)
