"""One load on one server, in numbers. This process makes the load, on a core of its own."""

import asyncio
import gc
import random
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import uvloop
from benchmarks.compare.servers import FailedError, Running, ask
from benchmarks.compare.systems import System
from benchmarks.compare.workloads import N_EVENTS, Cell, Workload, payloads

from mlserve.loadtest.connection import Answer, Target
from mlserve.loadtest.loops import closed_loop, connected, open_loop
from mlserve.loadtest.summary import Percentiles, summarised

__all__ = ["Figures", "has_settled", "measured"]

_PATIENCE_S = 1.0
_N_READY = 512
_HANGS_S = 60.0
_WARM_UP_CLIENTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What came of one load."""

    per_s: float
    """Good answers per second."""
    goodput_per_s: float | None
    events_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    refused_p99_ms: float | None
    n_sent: int
    n_bad: int
    """How many were answered with anything but success, or not at all."""
    server_us: float | None
    """CPU time that the server took for each good answer, or each event, in microseconds."""
    server_cores: float
    """How much of a core the server took."""
    client_cores: float
    """How much of a core the load took: near 1, it is the load that is measured."""

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return asdict(self)


def measured(
    system: System, workload: Workload, cell: Cell, running: Running, *, share: float, seed: int
) -> Figures:
    """
    Put one load on a server.

    Args:
        system: How it is asked.
        workload: What it serves.
        cell: The load.
        running: The server.
        share: Of the cell's seconds, for a quick look.
        seed: Of the times at which an open loop sends.

    Raises:
        FailedError: If it stops answering.
    """
    url = f"http://127.0.0.1:{running.port}{system.paths[workload.name]}"
    first, *more = [system.body(payload) for payload in payloads(workload)]
    target = Target(url, first, system.headers, more=tuple(more))
    load = _Load(running, target, cell.warm_up_s * share, cell.seconds * share)
    try:
        if cell.n_clients:
            uvloop.run(load.closed(cell.n_clients))
        else:
            uvloop.run(load.open(cell.per_s, random.Random(seed)))
    except TimeoutError:
        raise FailedError(f"no longer answers with {cell.name}") from None
    finally:
        gc.enable()
    took = load.took
    summary = summarised(load.answers, took.wall_s, n_unsent=load.n_unsent, slo_s=cell.slo_s)
    n_good = round(summary.per_s * took.wall_s)
    n_units = n_good
    if workload.name == "sse":  # of streams in another format only the ends are seen
        n_units = load.n_events or n_good * N_EVENTS
    return Figures(
        per_s=summary.per_s,
        goodput_per_s=summary.goodput_per_s,
        events_per_s=n_units / took.wall_s if workload.name == "sse" else None,
        p50_ms=_ms(summary.latency, "p50"),
        p99_ms=_ms(summary.latency, "p99"),
        p999_ms=_ms(summary.latency, "p999"),
        refused_p99_ms=_ms(summary.refusals, "p99"),
        n_sent=summary.n_sent + load.n_unsent,
        n_bad=summary.n_sent + load.n_unsent - n_good,
        server_us=took.server_s / n_units * 1e6 if n_units else None,
        server_cores=took.server_s / took.wall_s,
        client_cores=took.client_s / took.wall_s,
    )


@dataclass(frozen=True, slots=True)
class _Spent:
    """Time on the clock, and of the CPU for the server and for this process, in seconds."""

    wall_s: float
    server_s: float
    client_s: float

    @classmethod
    def by_now(cls, running: Running) -> "_Spent":
        server_s = running.cpu_s()
        return cls(time.perf_counter(), server_s, time.process_time())

    def until(self, later: "_Spent") -> "_Spent":
        return _Spent(
            later.wall_s - self.wall_s,
            later.server_s - self.server_s,
            later.client_s - self.client_s,
        )


class _Load:
    """What is sent, what comes of it once the server is warm, and what that takes."""

    def __init__(self, running: Running, target: Target, warm_up_s: float, seconds: float) -> None:
        self.answers: list[Answer] = []
        self.n_events = 0
        """How many events came, of whatever streams."""
        self.n_unsent = 0
        self.took = _Spent(0.0, 0.0, 0.0)
        self._running = running
        self._target = target
        self._warm_up_s = warm_up_s
        self._seconds = seconds

    async def closed(self, n_clients: int) -> None:
        """Measure amid the load: how it begins and ends is not what a server can do."""
        _tidy()
        found: list[Answer] = []
        whole_s = self._warm_up_s + self._seconds
        async with asyncio.timeout(whole_s + _HANGS_S), asyncio.TaskGroup() as group:
            group.create_task(closed_loop(self._target, n_clients, whole_s, found.append))
            await asyncio.sleep(self._warm_up_s)
            before = _Spent.by_now(self._running)
            await asyncio.sleep(self._seconds)
            after = _Spent.by_now(self._running)
        self.took = before.until(after)
        begin, end = before.wall_s, after.wall_s
        self.answers = [answer for answer in found if begin <= answer.ended_at < end]
        self.n_events = sum(begin <= at < end for answer in found for at in answer.chunks_at)

    async def open(self, per_s: float, dice: random.Random) -> None:
        """Measure from the first request to the last one that is worth its answer."""
        # Not by an open loop: what that leaves in a slow queue would be measured.
        async with asyncio.timeout(self._warm_up_s + _HANGS_S):
            await closed_loop(self._target, _WARM_UP_CLIENTS, self._warm_up_s, _ignore)
        ready = await connected(self._target, _N_READY)
        _tidy()
        before = _Spent.by_now(self._running)
        note = self.answers.append
        self.n_unsent = await open_loop(
            self._target, per_s, self._seconds, note, dice, _PATIENCE_S, ready
        )
        spent = before.until(_Spent.by_now(self._running))
        # What came late counts for the seconds in which it was asked for.
        self.took = replace(spent, wall_s=self._seconds)


def _tidy() -> None:
    """Collect now, and not amid the load: this process would be late for what is due then."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _ignore(answer: Answer) -> None:
    """Take an answer that does not count."""


def has_settled(system: System, workload: Workload, running: Running) -> bool:
    """Say whether a lone request is answered soon: nothing is left of the load before."""
    body = system.body(payloads(workload)[0])
    try:
        path = system.paths[workload.name]
        status, _ = ask(running.port, path, body, system.headers, timeout_s=1.0)
    except OSError:
        return False
    return status == 200


def _ms(found: Percentiles | None, name: str) -> float | None:
    return None if found is None else getattr(found, name) * 1e3
