"""One load on one server, in numbers. This process makes the load, on a core of its own."""

import asyncio
import gc
import random
import time
from dataclasses import asdict, dataclass
from typing import Any

import uvloop
from benchmarks.compare.servers import FailedError, Running, ask
from benchmarks.compare.systems import System
from benchmarks.compare.workloads import N_EVENTS, Cell, Workload, payloads

from mlserve.loadtest.connection import Answer, Target
from mlserve.loadtest.loops import closed_loop, open_loop
from mlserve.loadtest.summary import Percentiles, summarised

__all__ = ["Figures", "has_settled", "measured"]

_PATIENCE_S = 1.0
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
    answers: list[Answer] = []

    async def load(seconds: float, n_clients: int) -> int:
        answers.clear()
        if n_clients:
            async with asyncio.timeout(seconds + _HANGS_S):
                await closed_loop(target, n_clients, seconds, answers.append)
            return 0
        dice = random.Random(seed)
        return await open_loop(target, cell.per_s, seconds, answers.append, dice, _PATIENCE_S)

    try:
        # Never by an open loop: what it leaves in a slow server's queue would be measured next.
        uvloop.run(load(cell.warm_up_s * share, cell.n_clients or _WARM_UP_CLIENTS))
        gc.collect()
        gc.freeze()
        before = time.perf_counter(), time.process_time(), running.cpu_s()
        seconds = cell.seconds * share
        n_unsent = uvloop.run(load(seconds, cell.n_clients))
        after = time.perf_counter(), time.process_time(), running.cpu_s()
    except TimeoutError:
        raise FailedError(f"no longer answers with {cell.name}") from None
    took_s, client_s, server_s = (b - a for a, b in zip(before, after, strict=True))
    # Answers of a closed loop that came after its end were asked for before it.
    counted_s = seconds if cell.per_s else max(seconds, took_s)
    summary = summarised(answers, counted_s, n_unsent=n_unsent, slo_s=cell.slo_s)
    n_good = round(summary.per_s * counted_s)
    n_units = n_good * (N_EVENTS if workload.name == "sse" else 1)
    return Figures(
        per_s=summary.per_s,
        goodput_per_s=summary.goodput_per_s,
        events_per_s=n_units / counted_s if workload.name == "sse" else None,
        p50_ms=_ms(summary.latency, "p50"),
        p99_ms=_ms(summary.latency, "p99"),
        p999_ms=_ms(summary.latency, "p999"),
        refused_p99_ms=_ms(summary.refusals, "p99"),
        n_sent=summary.n_sent + n_unsent,
        n_bad=summary.n_sent + n_unsent - n_good,
        server_us=server_s / n_units * 1e6 if n_units else None,
        server_cores=server_s / took_s,
        client_cores=client_s / took_s,
    )


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
