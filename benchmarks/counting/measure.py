"""What one request costs: instructions and calls, what is left of it, and what it takes waiting."""

import asyncio
import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.counting.serving import Clients, logged, serving, unlogged
from benchmarks.counting.systems import BODY, SYSTEMS, Item
from benchmarks.counting.tally import Tally

import mlserve
from mlserve.observability.gathering import write_gathered

__all__ = ["CASES", "Case", "Cost", "Waiting", "cost_of", "waiting_of"]

_SWITCH_S = 100.0
_PACKAGE = str(Path(mlserve.__file__).parent)
_BENCHMARKS = str(Path(__file__).parents[1])

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked of one system, how often."""

    system: str
    n_clients: int = 1
    is_stream: bool = False
    """Whether an event of a stream is counted; else a request is."""
    few: int
    many: int
    """How often it is done: what both have in common, such as a stream's beginning, is left out."""

    async def do(self, clients: Clients, times: int) -> None:
        """Do it so often."""
        if self.is_stream:
            await clients.read_events(times)
            return
        for _ in range(times):
            await clients.ask(BODY)


def _case(system: str, n_clients: int = 1, *, is_stream: bool = False) -> Case:
    few, many = (20, 100) if n_clients == 1 else (2, 7)
    return Case(system=system, n_clients=n_clients, is_stream=is_stream, few=few, many=many)


CASES = {
    "mlserve, alone": _case("mlserve"),
    "mlserve, 32 at once": _case("mlserve", 32),
    "mlserve with keys, alone": _case("mlserve keys"),
    "mlserve with keys, 32 at once": _case("mlserve keys", 32),
    "mlserve, refused": _case("mlserve full", 32),
    "mlserve async, alone": _case("mlserve async"),
    "mlserve async, 32 at once": _case("mlserve async", 32),
    "FastAPI, alone": _case("FastAPI"),
    "FastAPI, 32 at once": _case("FastAPI", 32),
    "mlserve, an event": _case("mlserve stream", is_stream=True),
    "mlserve async, an event": _case("mlserve async stream", is_stream=True),
    "FastAPI, an event": _case("FastAPI stream", is_stream=True),
    "FastAPI events, an event": _case("FastAPI events", is_stream=True),
}
"""By what the tables call them."""


class Cost(NamedTuple):
    """What one request or one event costs."""

    instructions: dict[str, float]
    """Of the interpreter, by the name of the module."""
    calls: float
    """Functions that were entered, and coroutines that went on."""
    kept_blocks: float
    """Blocks of memory that are still there when it is over."""
    garbage: float
    """Objects that only the garbage collector could free."""

    @property
    def total(self) -> float:
        """All its instructions."""
        return sum(self.instructions.values())

    @property
    def own(self) -> float:
        """Those of mlserve itself."""
        return sum(n for name, n in self.instructions.items() if name.startswith("mlserve"))


class Waiting(NamedTuple):
    """What a request takes while it waits in the queue, in bytes."""

    own_bytes: float
    """What the code of mlserve has made for it, without the payload that it had pydantic make."""
    all_bytes: float
    """What anybody has made for it: also uvicorn, FastAPI and the payload."""
    payload_bytes: float
    """What the validated payload takes of that."""


def cost_of(case: Case) -> Cost:
    """Count what a case costs, in this thread."""
    with _ordered_threads(), unlogged():
        instructions, calls = _run(_count(case))
        kept_blocks, garbage = _run(_leave(case))
    n = case.n_clients * (case.many - case.few)
    return Cost(
        {name: value / n for name, value in instructions.items()},
        calls / n,
        kept_blocks / n,
        garbage / n,
    )


def waiting_of(system: str, n: int) -> Waiting:
    """Measure what some requests take that wait in a queue, each from a connection of its own."""
    with unlogged():
        return _run(_wait(system, n))


async def _count(case: Case) -> tuple[Counter[str], int]:
    tally = Tally()
    async with serving(SYSTEMS[case.system], case.n_clients, tally.counting()) as clients:

        async def counted(times: int) -> tuple[Counter[str], int]:
            before = tally.counts()
            with logged():
                await case.do(clients, times)
            after = tally.counts()
            after.instructions.subtract(before.instructions)
            return after.instructions, after.calls.total() - before.calls.total()

        await counted(case.few)
        few, many = await counted(case.few), await counted(case.many)
    many[0].subtract(few[0])
    return many[0], many[1] - few[1]


async def _leave(case: Case) -> tuple[int, int]:
    """Say what is left of the requests: blocks of memory, and objects in cycles."""
    async with serving(SYSTEMS[case.system], case.n_clients) as clients:

        async def left(times: int) -> tuple[int, int]:
            write_gathered()
            gc.collect()
            before = sys.getallocatedblocks()
            with logged():
                await case.do(clients, times)
            write_gathered()  # what metrics have gathered is not left behind
            n_garbage = gc.collect()
            return sys.getallocatedblocks() - before, n_garbage

        gc.disable()
        try:
            await left(case.many)
            few, many = await left(case.few), await left(case.many)
        finally:
            gc.enable()
    return many[0] - few[0], many[1] - few[1]


async def _wait(system: str, n: int) -> Waiting:
    async with serving(SYSTEMS[system], n) as clients:
        await clients.ask(BODY)
        tracemalloc.start()
        try:
            clients.turns.is_open.clear()
            gc.collect()
            before = tracemalloc.take_snapshot()
            clients.send(BODY)
            await clients.settle()
            gc.collect()
            after = tracemalloc.take_snapshot()
            payload = _payload_bytes()
        finally:
            tracemalloc.stop()
        clients.turns.is_open.set()
        for _ in range(n):
            clients.turns.give()
        await clients.answers()
    grown = {
        entry.traceback[0].filename: entry.size_diff / n
        for entry in after.compare_to(before, "filename")
        if not entry.traceback[0].filename.startswith((_BENCHMARKS, tracemalloc.__file__))
    }
    own = sum(size for name, size in grown.items() if name.startswith(_PACKAGE))
    return Waiting(max(0.0, own - payload), sum(grown.values()), payload)


def _payload_bytes() -> float:
    n = 100
    before = tracemalloc.get_traced_memory()[0]
    items = [Item.model_validate_json(BODY) for _ in range(n)]
    taken = tracemalloc.get_traced_memory()[0] - before - sys.getsizeof(items)
    return taken / n


def _run(work: Awaitable[T]) -> T:
    """Run in an event loop such as the server's."""
    factory = None
    with suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


@contextmanager
def _ordered_threads() -> Iterator[None]:
    """Let a thread run until it waits: when others would take turns is a matter of time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
