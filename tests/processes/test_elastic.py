"""Replicas that come with the load and go with it, in real processes."""

import asyncio
import os
import time
from functools import partial

import pytest
from tests.processes.serving import until

from mlserve import Batching, ModelHandler, ModelServer, Replicas
from mlserve.model import Model
from mlserve.processes.fleet import Fleet
from mlserve.processes.lane import RemoteLane
from mlserve.processes.placement import ProcessPlacement
from mlserve.processes.scaling import Scaling


class Slow(ModelHandler[str, int]):
    """Takes 0.1 s for one request at a time, and says which process it is."""

    def infer(self, inputs: list[str]) -> list[int]:
        time.sleep(0.1)
        return [os.getpid()]


class Single(Slow):
    """Cannot be loaded beside another one."""

    def load(self) -> None:
        if self.context.replica > 0:
            raise RuntimeError("there is room for one only")


def elastic(count: tuple[int, int], handler: type[Slow] = Slow) -> ModelServer:
    """A server whose replicas come after half a second of waits, and go after half of idling."""
    replicas = Replicas(placement="process", count=count)
    server = ModelServer().add("slow", handler, replicas=replicas, batching=Batching(max_size=1))
    placement = server.model_for("slow").engine.placement
    assert isinstance(placement, ProcessPlacement)
    scaling = Scaling(*count, grow_after_s=0.5, shrink_after_s=0.5)
    placement.open_fleet = partial(Fleet, scaling=scaling)
    return server


async def keep_busy(model: Model, pids: set[int]) -> None:
    while True:
        pids.add(await model.predict("x"))


async def until_there_are(n: int, model: Model) -> None:
    async with asyncio.timeout(30.0):
        while model.statistics().replicas != n:  # noqa: ASYNC110 - processes set no event
            await asyncio.sleep(0.05)


def test_replicas_come_while_requests_wait_and_go_when_they_are_idle() -> None:
    async def scenario() -> set[int]:
        pids: set[int] = set()
        async with server.started(), asyncio.TaskGroup() as group:
            model = server.model_for("slow")
            assert model.statistics().replicas == 1
            clients = [group.create_task(keep_busy(model, pids)) for _ in range(6)]
            await until_there_are(2, model)
            pids.clear()
            async with asyncio.timeout(30.0):
                while len(pids) < 2:  # noqa: ASYNC110 - likewise
                    await asyncio.sleep(0.05)
            for client in clients:
                client.cancel()
            await until_there_are(1, model)
            await model.predict("x")
        return pids

    server = elastic((1, 2))
    assert len(asyncio.run(scenario())) == 2


def test_a_replica_that_cannot_be_loaded_is_tried_no_longer_than_it_is_needed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with server.started(), asyncio.TaskGroup() as group:
            model = server.model_for("slow")
            lane = model.engine._lane
            assert isinstance(lane, RemoteLane)
            fleet = lane._fleet
            assert isinstance(fleet, Fleet)
            clients = [group.create_task(keep_busy(model, set())) for _ in range(6)]
            await until(lambda: "replica.load.failed" in caplog.text)
            for client in clients:
                client.cancel()
            await until(lambda: list(fleet._keepers) == [0])
            assert model.statistics().replicas == 1
            await model.predict("x")

    server = elastic((1, 2), Single)
    asyncio.run(scenario())
