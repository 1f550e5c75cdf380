"""Runs the loads on the systems, in turns, and keeps what came of it."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from benchmarks.compare.environments import NotInstalledError, python_of
from benchmarks.compare.measure import has_settled, measured
from benchmarks.compare.plan import interleaved
from benchmarks.compare.results import Absence, Results, Sample
from benchmarks.compare.servers import FailedError, Running, check, started
from benchmarks.compare.systems import System
from benchmarks.compare.workloads import Workload

__all__ = ["Options", "run"]

_LOST = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured."""

    systems: tuple[System, ...]
    workloads: tuple[Workload, ...]
    n_rounds: int
    share: float
    """Of each load's seconds."""
    cache: Path
    """Where the environments of the peers are."""
    is_quick: bool = False
    """Whether only the loads of a quick look are put on the systems."""


def run(options: Options) -> Results:
    """Measure all that can be measured here; what cannot is left out with the reason."""
    results = Results([])
    for workload in options.workloads:
        pythons = _pythons(options, workload, results)
        able = [system for system in options.systems if system.name in pythons]
        reference: list[float] = []
        for number, system in interleaved(able, options.n_rounds):
            if results.is_absent(workload.name, system.name):
                continue
            print(f"{workload.name}, round {number + 1}: {system.name}", flush=True)
            turn = _Turn(options, workload, system, pythons[system.name], number)
            try:
                results.samples += turn.take(reference)
            except (FailedError, LookupError, OSError, HTTPException, ValueError) as exc:
                print(f"  left out: {exc}", file=sys.stderr, flush=True)
                results.absences.append(
                    Absence(workload=workload.name, system=system.name, why=str(exc))
                )
    return results


def pythons_of(options: Options) -> dict[str, Path]:
    """Give the interpreter of each environment that is there."""
    found = {"here": Path(sys.executable)}
    for system in options.systems:
        if system.peer is not None:
            python = options.cache / system.peer / "bin" / "python"
            if python.exists():
                found[system.peer] = python
    return found


def _pythons(options: Options, workload: Workload, results: Results) -> dict[str, Path]:
    found = {}
    for system in options.systems:
        if workload.name not in system.paths:
            continue
        try:
            found[system.name] = python_of(
                system.peer, options.cache, with_encoder=workload.name == "minilm"
            )
        except NotInstalledError as exc:
            results.absences.append(
                Absence(workload=workload.name, system=system.name, why=str(exc))
            )
    return found


class _Turn:
    """One system with one workload in one round."""

    def __init__(
        self, options: Options, workload: Workload, system: System, python: Path, number: int
    ) -> None:
        self._options = options
        self._workload, self._system = workload, system
        self._python, self._round = python, number

    def take(self, reference: list[float]) -> Sequence[Sample]:
        """Measure each load, with a new server where the one before still has work to do."""
        cells = [c for c in self._workload.cells if c.is_quick or not self._options.is_quick]
        samples: list[Sample] = []
        with ExitStack() as stack:
            running = self._start(stack, reference)
            for cell in cells:
                if samples and not has_settled(self._system, self._workload, running):
                    stack.close()
                    running = self._start(stack, reference)
                figures = measured(
                    self._system,
                    self._workload,
                    cell,
                    running,
                    share=self._options.share,
                    seed=self._round,
                )
                print(f"  {cell.name}: {_said(figures.as_json())}", flush=True)
                samples.append(
                    Sample(
                        workload=self._workload.name,
                        system=self._system.name,
                        cell=cell.name,
                        round=self._round,
                        figures=figures.as_json()
                        | {"ready_s": running.ready_s, "rss_mb": running.rss_mb()},
                    )
                )
                if (figures.goodput_per_s or 0.0) < _LOST * cell.per_s:
                    break  # what is more than this would be lost, too, and take long to get over
        return samples

    def _start(self, stack: ExitStack, reference: list[float]) -> Running:
        running = stack.enter_context(started(self._system, self._workload, self._python))
        vector = check(self._system, self._workload, running)
        if vector is not None and not reference:
            reference += vector
        if vector is not None and sum(map(_product, vector, reference)) < 0.999:
            raise FailedError("answers other vectors than the first system")
        return running


def _product(a: float, b: float) -> float:
    return a * b


def _said(figures: dict[str, Any]) -> str:
    shown = ("per_s", "goodput_per_s", "events_per_s", "p50_ms", "p99_ms", "n_bad", "server_us")
    return ", ".join(f"{k} {figures[k]:,.4g}" for k in shown if figures[k] is not None)
