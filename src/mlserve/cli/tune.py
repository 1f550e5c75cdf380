"""`mlserve tune`: what do batches cost here, and how large should they be?"""

import asyncio
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlserve.batching.cost_model import CostModel
from mlserve.batching.report import BatchReport
from mlserve.cli.target import Target, find
from mlserve.errors import ConfigurationError, MLServeError, OutOfMemoryError
from mlserve.execution.pipeline import Pipeline
from mlserve.execution.stages import Stage, run_mixed
from mlserve.execution.worker import Mailbox, Worker
from mlserve.handler import Call, Context
from mlserve.job import Job
from mlserve.loadtest.chart import Series, lines
from mlserve.spec import ModelSpec

__all__ = ["Advice", "Measured", "advise", "tune"]

_ENOUGH = 0.95
"""Of the best throughput: a larger batch that brings no more than this is not worth its time."""
_LEAST_RUNS, _MOST_RUNS = 3, 200


@dataclass(frozen=True, slots=True)
class Measured:
    """What batches of one size took."""

    size: int
    cost: int
    """What the handler says that the batch costs."""
    mean_s: float
    n_runs: int

    @property
    def per_s(self) -> float:
        """How many requests a replica serves per second with such batches."""
        return self.size / self.mean_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What was found for one model."""

    max_size: int
    max_cost: int | None
    """The same in cost, for a handler that says what inputs cost."""
    latency_s: float
    """What a request takes at most while replicas are not overloaded: two batches."""
    per_s: float
    """How many requests per second one replica serves then."""
    fixed_s: float
    each_s: float
    """A batch of n takes about `fixed_s + each_s * n` seconds."""
    is_within: bool
    """Whether even the smallest batch keeps the objective."""


def tune(
    target: Target,
    slo_ms: Annotated[float, typer.Option(min=0.1, help="The latency to keep, in ms.")] = 100.0,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="For how long each size.")] = 1.0,
    largest: Annotated[int, typer.Option(min=1, help="The largest batch to try.")] = 256,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write the figures.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Where to draw throughput against latency, as SVG.")
    ] = None,
) -> None:
    """Measure what batches cost, and say how large they should be."""
    found = find(target)
    models = [each for each in found.registry or () if model in (None, each.name)]
    if not models:
        typer.echo(f"mlserve: {target} has no model{f' {model!r}' if model else ''}.", err=True)
        raise typer.Exit(2)
    console, slo_s, report = Console(), slo_ms / 1e3, {}
    for each in models:
        spec = each.engine.spec
        try:
            measured = asyncio.run(
                _measure_costs(spec, slo_s=slo_s, seconds=seconds, largest=largest)
            )
        except ConfigurationError as exc:
            typer.echo(f"mlserve: {exc}", err=True)
            raise typer.Exit(2) from None
        has_costs = spec.contract.hooks["cost"].overridden
        advice = advise(measured, slo_s, has_costs=has_costs)
        _show(f"{spec.name} {spec.version}", measured, advice, console)
        report[f"{spec.name}/{spec.version}"] = _as_json(measured, advice)
        if chart is not None:
            chart.write_text(_chart(spec.name, measured), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2), encoding="utf-8")


def advise(measured: Sequence[Measured], slo_s: float, *, has_costs: bool) -> Advice:
    """
    Choose a size. Pure.

    A request that comes just after a batch was begun waits for its end, and then for its own: two
    batches have to fit into the objective. Of the sizes that do, the smallest one is taken that
    serves nearly as many as the best.

    Args:
        measured: At least one size.
        slo_s: The objective for the latency, in seconds.
        has_costs: Whether the handler says what inputs cost.
    """
    model = CostModel()
    for entry in measured:
        model.observe(entry.size, entry.mean_s)
    fixed_s, each_s = model.line
    fitting = [entry for entry in measured if 2 * entry.mean_s <= slo_s]
    candidates = fitting or [min(measured, key=lambda entry: entry.size)]
    best = max(entry.per_s for entry in candidates)
    chosen = min(
        (entry for entry in candidates if entry.per_s >= _ENOUGH * best), key=lambda e: e.size
    )
    return Advice(
        max_size=chosen.size,
        max_cost=chosen.cost if has_costs else None,
        latency_s=2 * chosen.mean_s,
        per_s=chosen.per_s,
        fixed_s=fixed_s,
        each_s=each_s,
        is_within=bool(fitting),
    )


async def _measure_costs(
    spec: ModelSpec, *, slo_s: float, seconds: float, largest: int
) -> list[Measured]:
    """
    Load one replica of a model and run batches of its examples through `infer`, in its thread.

    Sizes double until a batch alone takes longer than the objective or fails.

    Args:
        spec: The model.
        slo_s: The objective, in seconds.
        seconds: How long each size is measured.
        largest: The largest size.

    Raises:
        ConfigurationError: If the model has no `infer` or no examples.
        Exception: What `load` raised, or a batch of one.
    """
    contract = spec.contract
    if not contract.can_infer or contract.is_stepped:
        raise ConfigurationError(f"Model `{spec.name}` runs no batches: there is nothing to tune.")
    bench = _Bench(spec)
    try:
        examples = await bench.start()
        if not examples:
            raise ConfigurationError(
                f"Model `{spec.name}` has no `examples`: write some, like what is to be served."
            )
        found: list[Measured] = []
        for size in itertools.takewhile(lambda n: n <= largest, (2**i for i in itertools.count())):
            try:
                entry = await bench.measure(examples, size, seconds)
            except MLServeError:
                if not found:
                    raise
                break  # memory may have run out
            found.append(entry)
            if entry.mean_s > slo_s:
                break
        return found
    finally:
        await bench.close()


class _Bench:
    """One replica, without queue and server."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._pipeline = Pipeline(spec.contract, spec.name)
        self._handler = spec.factory()
        self._handler.context = Context(
            name=spec.name,
            version=spec.version,
            threads=spec.replicas.threads_per_replica,
            batching=spec.batching,
        )
        self._worker = Worker(f"mlserve-tune-{spec.name}", Mailbox(asyncio.get_running_loop()))

    async def start(self) -> list[Any]:
        await self._run(self._pipeline.call("load"))
        examples = self._handler.examples()
        return list(await examples if asyncio.iscoroutine(examples) else examples)

    async def measure(self, examples: Sequence[Any], size: int, seconds: float) -> Measured:
        """Run batches of all examples in turns, the first time without counting it."""
        jobs = [self._job(example) for example in examples]
        for job in jobs:
            await self._run(self._pipeline.prepare(job))
        turns = itertools.cycle(jobs)
        is_padded = self._spec.batching.padded

        def next_batch() -> list[Job]:
            # Where padding costs, the batcher looks for company of like length.
            return [next(turns)] * size if is_padded else [next(turns) for _ in range(size)]

        least = max(_LEAST_RUNS, len(jobs) if is_padded else math.ceil(len(jobs) / size))
        took_s: list[float] = []
        costs: list[int] = []
        await self._time(next_batch())
        until = time.perf_counter() + seconds
        while len(took_s) < least or (time.perf_counter() < until and len(took_s) < _MOST_RUNS):
            batch = next_batch()
            took_s.append(await self._time(batch))
            costs.append(sum(job.cost for job in batch))
        mean_s, mean_cost = sum(took_s) / len(took_s), sum(costs) / len(costs)
        return Measured(size, round(mean_cost), mean_s, len(took_s))

    async def _time(self, batch: list[Job]) -> float:
        """Run a batch, and say how long it took; it raises what the model did."""
        report = BatchReport()
        started = time.perf_counter()
        outcomes = await self._run(self._pipeline.infer(batch, report))
        took_s = time.perf_counter() - started
        if report.n_splits:
            raise OutOfMemoryError(self._spec.name, len(batch))
        if isinstance(outcomes[0], MLServeError):
            raise outcomes[0]
        return took_s

    async def close(self) -> None:
        try:
            await self._run(self._pipeline.call("unload"))
        finally:
            self._worker.close()

    def _job(self, example: Any) -> Job:
        call = Call("tune", timeout_s=3600.0)
        return Job(example, call, timeout_s=3600.0)

    async def _run(self, stage: Stage[Any]) -> Any:
        return await run_mixed(stage, self._handler, self._worker)


def _show(name: str, measured: Sequence[Measured], advice: Advice, console: Console) -> None:
    """Print what was measured and what to do."""
    table = Table("batch", "ms", "ms each", "requests/s", "longest wait, ms", title=name)
    for entry in measured:
        table.add_row(
            f"{entry.size}",
            f"{entry.mean_s * 1e3:,.2f}",
            f"{entry.mean_s / entry.size * 1e3:,.3f}",
            f"{entry.per_s:,.0f}",
            f"{2 * entry.mean_s * 1e3:,.1f}",
        )
    console.print(table)
    console.print(
        f"A batch of n takes about {advice.fixed_s * 1e3:.3g} ms + {advice.each_s * 1e3:.3g} ms·n."
    )
    if not advice.is_within:
        console.print("Even a batch of one takes longer than half of the objective.")
    cost = "" if advice.max_cost is None else f", max_cost={advice.max_cost}"
    console.print(
        f"batching=Batching(max_size={advice.max_size}{cost})  # {advice.per_s:,.0f} requests/s per"
        f" replica, at most {advice.latency_s * 1e3:.1f} ms",
        highlight=False,
        soft_wrap=True,
    )


def _chart(name: str, measured: Sequence[Measured]) -> str:
    """Draw throughput against latency, as SVG."""
    points = [(2 * entry.mean_s * 1e3, entry.per_s) for entry in measured]
    return lines(
        f"{name}: batches of {measured[0].size} to {measured[-1].size}",
        "longest wait in ms",
        "requests/s of a replica",
        [Series(name, points)],
    )


def _as_json(measured: Sequence[Measured], advice: Advice) -> dict[str, Any]:
    """Give what was found as JSON values; durations stay in seconds."""
    return {"measured": [asdict(entry) for entry in measured], "advice": asdict(advice)}
