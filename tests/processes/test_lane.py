"""What a lane makes of replicas that others look after, and whose news come by two ways."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from tests.processes.serving import until

from mlserve import ModelServer, Replicas
from mlserve.processes import messages
from mlserve.processes.board import Board
from mlserve.processes.fleet import FleetStatus, Listener
from mlserve.processes.lane import RemoteLane
from mlserve.processes.wire import Link, connect
from mlserve.testing import EchoHandler


class FakeFleet:
    """One replica, which says what the test has it say."""

    def __init__(self) -> None:
        self.board = Board.create(1, 1)

    async def start(self, load_timeout_s: float | None) -> int:
        return 1

    def listen(self, index: int, listener: Listener) -> None:
        """No test needs more than one."""

    def watch_health(self, period_s: float) -> None:
        """No replica is ill."""

    async def close(self) -> None:
        self.board.close()


class Scene:
    """A lane with one replica that serves."""

    def __init__(self) -> None:
        replicas = Replicas(placement="process")
        model = ModelServer().add("m", EchoHandler, replicas=replicas).model_for("m")
        self.lane = RemoteLane(
            model.engine.spec, FakeFleet(), 0, lambda: None, lambda *_: None, lambda: 0.0
        )
        self.replica = Link(lambda received: None, lambda: None)

    async def begin(self) -> None:
        ours, theirs = socket.socketpair()
        await connect(theirs, self.replica)
        self.lane.replica_up(0, ours)
        self.lane.note_status(FleetStatus(is_recovering=False, serving=frozenset({0})))
        await until(lambda: self.lane.n_serving == 1)

    async def hear(self, kind: int) -> None:
        self.replica.send((kind,))
        n_before = self.lane.n_serving
        await until(lambda: self.lane.n_serving != n_before)


def play(script: Callable[[Scene], Awaitable[None]]) -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.begin()
        try:
            await script(scene)
        finally:
            await scene.lane.close()
            scene.replica.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [messages.RETIRING, messages.BROKEN])
def test_a_replica_that_has_just_left_is_waited_for_until_its_supervisor_has_spoken(
    kind: int,
) -> None:
    async def script(scene: Scene) -> None:
        assert not scene.lane.is_recovering
        await scene.hear(kind)
        assert scene.lane.is_recovering
        scene.lane.note_status(FleetStatus(is_recovering=kind == messages.RETIRING))
        assert scene.lane.is_recovering is (kind == messages.RETIRING)

    play(script)


def test_a_replica_that_has_just_ended_is_waited_for_until_its_supervisor_has_spoken() -> None:
    async def script(scene: Scene) -> None:
        scene.replica.close()
        await until(lambda: scene.lane.n_serving == 0)
        assert scene.lane.is_recovering
        scene.lane.note_status(FleetStatus(is_recovering=False))
        assert not scene.lane.is_recovering

    play(script)


def test_a_replica_that_was_broken_and_is_mended_takes_work_again() -> None:
    async def script(scene: Scene) -> None:
        await scene.hear(messages.BROKEN)
        assert scene.lane.n_serving == 0
        await scene.hear(messages.MENDED)
        assert scene.lane.n_serving == 1

    play(script)
