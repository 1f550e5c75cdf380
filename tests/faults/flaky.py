"""Models whose lives go wrong: they are held up, run out of memory, fail when they begin or end."""

import time
from collections.abc import Iterator
from typing import Any

from tests.faults.handler import Ask, FaultyHandler, error_of
from tests.faults.notebook import Notebook

from mlserve import ModelHandler

TOKEN_S = 0.02


class Held(FaultyHandler):
    """Keeps requests whose text says so until `released` is noted."""

    notes: Notebook

    def infer(self, inputs: list[Ask], calls: list[Any]) -> Any:
        if any(item.text.startswith("hold") for item in inputs):
            self.notes.wait_for("released")
        return super().infer(inputs, calls)

    def stream(self, item: Ask, call: Any) -> Any:
        if item.text.startswith("hold"):
            self.notes.wait_for("released")
        return super().stream(item, call)


class Bounded(FaultyHandler):
    """
    Has memory for so many requests at once.

    Args:
        notes: Where it notes the size of each batch.
        limit: How many.
    """

    def __init__(self, notes: Notebook, limit: int) -> None:
        super().__init__(notes)
        self.limit = limit

    def infer(self, inputs: list[Ask], calls: list[Any]) -> Any:
        self._note("size", str(len(inputs)))
        if len(inputs) > self.limit:
            raise error_of("oom")
        return super().infer(inputs, calls)


class Flaky(FaultyHandler):
    """
    Fails in the hooks of a replica's life that are noted.

    `fails-load` and `fails-warmup` say what they raise, `fails-unload` what each unload does.
    If `ails` is noted, the health of that replica fails until it was replaced. If `waits` is noted,
    each load but the first waits until `may load` is noted.
    """

    notes: Notebook

    def load(self) -> None:
        number = str(self.context.replica)
        self.is_first = number not in self.notes.read("loaded")
        """Whether it is the first handler of its replica's number."""
        self.notes.note("loaded", number)
        self._fail("load")
        if self.notes.has("waits") and not self.is_first:
            self.notes.wait_for("may load")

    def warmup(self) -> None:
        self._fail("warmup")

    def unload(self) -> None:
        number = len(self.notes.read("unloaded"))
        self.notes.note("unloaded")
        self._fail("unload", number)

    def health(self) -> None:
        if self.is_first and str(self.context.replica) in self.notes.read("ails"):
            raise RuntimeError("This replica ails.")

    def _fail(self, hook: str, number: int = 0) -> None:
        [what] = self.notes.read(f"fails-{hook}")[number : number + 1] or [""]
        if what:
            raise error_of(what)


class Tokens(ModelHandler[str, int]):
    """
    A token every 20 ms, for ever.

    Args:
        notes: Where it notes when it began with each, and when it was closed, in monotonic seconds.
    """

    def __init__(self, notes: Notebook) -> None:
        self.notes = notes

    def stream(self, item: str) -> Iterator[int]:
        n = 0
        try:
            while True:
                self.notes.note("begun", str(time.monotonic()))
                time.sleep(TOKEN_S)  # stands for the model
                n += 1
                yield n
        finally:
            self.notes.note("closed", str(time.monotonic()))
