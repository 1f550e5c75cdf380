"""A host whose hooks run for as long as a test likes."""

import asyncio
from typing import Any

from mlserve.batching.cost_model import CostModel
from mlserve.handler import Call
from mlserve.processes.board import Board, Mark
from mlserve.processes.host import Host
from mlserve.processes.watched import HostedJob


class FakePool:
    """Counts hooks that run."""

    def __init__(self) -> None:
        self.running: set[HostedJob] = set()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def n_running(self) -> int:
        return len(self.running)

    def begin(self, job: HostedJob) -> None:
        self.running.add(job)
        self.idle.clear()

    def end(self, job: HostedJob) -> None:
        self.running.discard(job)
        if not self.running:
            self.idle.set()

    async def wait_idle(self) -> None:
        await self.idle.wait()


class FakeQueue:
    occupied = 0


class FakeBatcher:
    n_batches = n_batched = n_splits = n_out_of_memory = 0

    def __init__(self) -> None:
        self.cost_model = CostModel()
        self.n_wakes = 0

    def wake(self) -> None:
        self.n_wakes += 1


class FakeLane:
    """Runs whatever it is given, at once."""

    def __init__(self) -> None:
        self.pool = FakePool()
        self.queue = FakeQueue()
        self.batcher = FakeBatcher()
        self.predicted: list[HostedJob] = []

    def reserve(self, job: HostedJob, *, is_stream: bool) -> None:
        """There is room."""

    def predict(self, job: HostedJob) -> None:
        self.predicted.append(job)

    def leave(self, job: HostedJob) -> None:
        """A hook that runs goes on."""


class Scene:
    """A host and the requests that it was given, which it begins here."""

    def __init__(self) -> None:
        self.lane = FakeLane()
        self.board = Board.create(1, 2)
        lane: Any = self.lane
        self.host = Host(lane, self.board, 0, has_costs=False)
        self.begun: list[HostedJob] = []
        self.waiting: list[HostedJob] = []
        self._n = 0

    def take(self, *, is_alone: bool = False, is_stream: bool = False) -> HostedJob:
        self._n += 1
        job = HostedJob(
            self,
            self._n,
            -1,
            Call(f"request {self._n}"),
            is_stream=is_stream,
            is_alone=is_alone,
            timeout_s=60.0,
            priority=0,
        )
        self.waiting.append(job)
        self.host.take(job)
        return job

    def begin(self, job: HostedJob) -> None:
        self.waiting.remove(job)
        self.begun.append(job)
        self.lane.pool.begin(job)

    def answer(self, job: HostedJob, value: Any = None, error: Any = None) -> None:
        self.lane.pool.end(job)
        self.begun.remove(job)
        self.host.forget(job)

    def cancel(self, job: HostedJob) -> None:
        """Its hook runs on, if it was begun."""
        (self.begun if job in self.begun else self.waiting).remove(job)
        self.host.forget(job)

    def mark(self, job: HostedJob, mark: Mark) -> None:
        """Nobody looks at the marks."""

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def close(self) -> None:
        await self.host.close(0.0)
        self.board.close()


def play(script: Any) -> None:
    async def scenario() -> None:
        scene = Scene()
        try:
            await script(scene)
        finally:
            await scene.close()

    asyncio.run(scenario())
