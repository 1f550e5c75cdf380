"""The loads that all systems meet. Pure."""

import math
import random
from dataclasses import dataclass

from benchmarks.peers.model import EACH_S, FIXED_S, MAX_SIZE

__all__ = [
    "CEILING_PER_S",
    "N_EVENTS",
    "WORKLOADS",
    "Cell",
    "Workload",
    "ceiling_per_s",
    "payloads",
    "texts",
]

OBJECTIVE_S = 0.25
N_TEXTS = 1000
N_EVENTS = 500
WORDS = (  # noqa: SIM905 - words are easier to read than a list of them
    "the a model server request batch answer waits token text long short queue light water house"
    " reads writes and of in with under over because when green quick small people between river"
).split()


def ceiling_per_s(n_clients: int) -> float:
    """Give what the accelerator does if a closed loop of so many clients always fills batches."""
    n = min(n_clients, MAX_SIZE)
    return n / (FIXED_S + EACH_S * n)


CEILING_PER_S = ceiling_per_s(MAX_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One load: so many clients of a closed loop, or so many requests per second of an open one."""

    name: str
    n_clients: int = 0
    per_s: float = 0.0
    """Of an open loop; 0 = the loop is closed."""
    seconds: float = 2.0
    warm_up_s: float = 0.5
    ceiling: float | None = None
    """The most that can come of it, in the workload's unit."""
    slo_s: float | None = None
    """Within which time an answer is of use, in seconds."""
    is_quick: bool = True
    """Whether it belongs to a quick look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is served, and how it is asked."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    measure: str = "per_s"
    """The figure that counts."""
    unit: str = "requests/s"
    baseline: str | None = None
    """The system that the others are set beside."""
    objective_s: float | None = None
    """What the servers are told, in seconds."""
    is_quick: bool = True


def _closed(n: int, *, ceiling: float | None = None, is_quick: bool = False) -> Cell:
    name = "1 connection" if n == 1 else f"{n} connections"
    return Cell(name=name, n_clients=n, ceiling=ceiling, is_quick=is_quick)


def _open(share: float) -> Cell:
    per_s = share * CEILING_PER_S
    return Cell(
        name=f"{share:.0%} of the ceiling",
        per_s=per_s,
        seconds=3.0,
        ceiling=min(per_s, CEILING_PER_S),
        slo_s=OBJECTIVE_S,
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="noop",
            title="A model that does nothing",
            cells=(_closed(1, is_quick=True), _closed(64, is_quick=True), _closed(256)),
            baseline="fastapi",
        ),
        Workload(
            name="accelerator",
            title="A simulated accelerator",
            cells=tuple(
                _closed(n, ceiling=ceiling_per_s(n), is_quick=n in (16, 64))
                for n in (1, 16, 64, 256)
            ),
        ),
        Workload(
            name="overload",
            title="The accelerator with requests at random times",
            cells=tuple(map(_open, (0.8, 1.2, 2.0, 3.0))),
            measure="goodput_per_s",
            unit="answers within 250 ms/s",
            objective_s=OBJECTIVE_S,
            is_quick=False,
        ),
        Workload(
            name="minilm",
            title="A sentence encoder",
            cells=(Cell(name="64 connections", n_clients=64, seconds=10.0, warm_up_s=2.0),),
            baseline="recipe",
            is_quick=False,
        ),
        Workload(
            name="sse",
            title="Streams of events",
            cells=(Cell(name="8 streams", n_clients=8),),
            measure="events_per_s",
            unit="events/s",
            baseline="fastapi",
        ),
    )
}


def texts() -> list[str]:
    """Give texts of mixed lengths: half of them under 50 words, one in twenty over 230."""
    dice = random.Random(7)
    lengths = [round(dice.lognormvariate(math.log(50), 0.95)) for _ in range(N_TEXTS)]
    return [" ".join(dice.choices(WORDS, k=min(max(n, 1), 250))) for n in lengths]


def payloads(workload: Workload) -> list[dict[str, object]]:
    """Give what is sent in turn, as plain JSON objects; nothing = only a GET makes sense."""
    if workload.name == "minilm":
        return [{"text": text} for text in texts()]
    if workload.name == "sse":
        return [{"n": N_EVENTS}]
    return [{"x": 1.5}] if workload.name in WORKLOADS else []
