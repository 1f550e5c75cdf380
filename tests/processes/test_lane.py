"""What a lane makes of replicas that others look after, and whose news come by two ways."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.processes.handlers import Unwelcome
from tests.processes.serving import until

from mlserve import (
    Call,
    ModelError,
    ModelFailedError,
    ModelServer,
    ReplicaDiedError,
    Replicas,
)
from mlserve.job import FutureSink, Job
from mlserve.processes import messages
from mlserve.processes.board import Board, Mark
from mlserve.processes.fleet import FleetStatus, Listener
from mlserve.processes.frames import Parcel, pack
from mlserve.processes.lane import RemoteLane
from mlserve.processes.wire import Link, connect
from mlserve.testing import EchoHandler


class FakeFleet:
    """One replica, which says what the test has it say."""

    def __init__(self) -> None:
        self.board = Board.create(1, 1)
        self.lost: list[tuple[int, int, int]] = []

    async def start(self, load_timeout_s: float | None) -> int:
        return 1

    def listen(self, index: int, listener: Listener) -> None:
        """No test needs more than one."""

    def note_lost(self, index: int, number: int, pid: int) -> None:
        self.lost.append((index, number, pid))

    def watch_health(self, period_s: float) -> None:
        """No replica is ill."""

    async def close(self) -> None:
        self.board.close()


class Once(EchoHandler):
    """May not be run again."""

    idempotent = False


class Scene:
    """A lane with one replica that serves, of which the test keeps the other end."""

    def __init__(self, handler: type[EchoHandler] = EchoHandler) -> None:
        replicas = Replicas(placement="process")
        model = ModelServer().add("m", handler, replicas=replicas).model_for("m")
        self.lane = RemoteLane(
            model.engine.spec, FakeFleet(), 0, self.note_change, lambda *_: None, lambda: 0.0
        )
        self.futures: dict[str, asyncio.Future[Any]] = {}
        self.heard: list[tuple[Any, ...]] = []

    def note_change(self) -> None:
        self.lane.note_change()

    async def come_up(self) -> None:
        """Connect the lane with the process of a replica."""
        self.replica = Link(self.heard.extend, lambda: None)
        ours, theirs = socket.socketpair()
        await connect(theirs, self.replica)
        self.lane.replica_up(0, ours)

    async def begin(self) -> None:
        await self.come_up()
        self.lane.note_status(FleetStatus(is_recovering=False, serving=frozenset({0})))
        await until(lambda: self.lane.n_serving == 1)

    async def submit(self, *names: str) -> None:
        """Have the replica get requests, in the order of their names."""
        for name in names:
            self.place(name)
        await until(lambda: self.submitted() == list(names))

    def place(self, name: str) -> Job:
        """Hand a request to the lane."""
        job = Job({"text": name}, Call(name), timeout_s=60.0)
        self.futures[name] = asyncio.get_running_loop().create_future()
        job.sink = FutureSink(self.futures[name])
        self.lane.enter(job, is_stream=False)
        self.lane.predict(job)
        return job

    def answer(self, kind: int, number: int, packed: Parcel) -> None:
        """Have the replica answer a request."""
        self.replica.send((kind, number, (0.0, 0.0, 0.0, 0.0), 1, None, packed))

    def submitted(self) -> list[str]:
        """List what the replica was sent, or those before it were."""
        return [message[4] for message in self.heard if message[0] == messages.SUBMIT]

    async def hear(self, kind: int) -> None:
        self.replica.send((kind,))
        n_before = self.lane.n_serving
        await until(lambda: self.lane.n_serving != n_before)


def play(
    script: Callable[[Scene], Awaitable[None]], handler: type[EchoHandler] = EchoHandler
) -> None:
    async def scenario() -> None:
        scene = Scene(handler)
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


def test_where_requests_were_is_seen_before_the_next_replica_takes_over_their_marks() -> None:
    """A process that was busy hears of the end of one and of the start of the next at once."""

    async def script(scene: Scene) -> None:
        await scene.submit("running", "answered", "waiting")
        marks = scene.lane._board.marks(0, 0)
        marks[0], marks[1] = Mark.INFER, Mark.ANSWERED
        scene.replica.close()
        await scene.come_up()
        await until(lambda: len(scene.heard) == 4)

        assert scene.submitted()[3:] == ["waiting"]
        for name in ("running", "answered"):
            assert isinstance(scene.futures[name].exception(), ReplicaDiedError)
        assert not any(marks)

    play(script, Once)


def test_a_replica_whose_socket_somebody_else_holds_is_replaced_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlserve.processes.client.LAST_WORDS_S", 0.05)

    async def script(scene: Scene) -> None:
        await scene.submit("waiting")
        old = scene.replica
        await scene.come_up()
        await until(lambda: len(scene.heard) == 2)
        old.close()

        assert scene.submitted() == ["waiting", "waiting"]
        assert scene.lane.n_serving == 1

    play(script)


def test_what_no_hook_was_begun_for_is_sent_again_and_what_a_hook_has_raised_is_not() -> None:
    async def script(scene: Scene) -> None:
        await scene.submit("refused", "raised")
        scene.replica.send((messages.NOT_BEGUN, 1))
        scene.answer(messages.ERROR, 2, pack(ModelFailedError("another", "it is down")))
        await until(scene.futures["raised"].done)
        await until(lambda: len(scene.heard) == 3)

        assert scene.submitted() == ["refused", "raised", "refused"]
        assert isinstance(scene.futures["raised"].exception(), ModelFailedError)

    play(script)


@pytest.mark.parametrize("kind", [messages.RESULT, messages.ERROR])
def test_an_answer_that_cannot_be_received_takes_no_other_one_with_it(kind: int) -> None:
    async def script(scene: Scene) -> None:
        await scene.submit("odd", "even")
        scene.answer(kind, 1, pack(Unwelcome()))
        scene.replica.send((kind, "nonsense"))
        scene.answer(messages.RESULT, 2, pack("well"))
        await until(scene.futures["even"].done)

        assert isinstance(scene.futures["odd"].exception(), ModelError)
        assert scene.futures["even"].result() == "well"

    play(script)


def test_what_no_replica_will_ever_take_is_refused_at_once() -> None:
    async def script(scene: Scene) -> None:
        await scene.submit("late")
        await scene.hear(messages.BROKEN)
        scene.lane.note_status(FleetStatus(is_recovering=False, reason="it is broken"))
        await until(scene.futures["late"].done)
        assert isinstance(scene.futures["late"].exception(), ModelFailedError)
        scene.place("later")
        assert isinstance(scene.futures["later"].exception(), ModelFailedError)

    play(script)


def test_what_has_no_place_on_the_board_waits_until_another_request_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlserve.processes.client.N_SLOTS", 2)

    async def script(scene: Scene) -> None:
        await scene.submit("first", "second")
        for name in ("third", "left", "fourth"):
            left = scene.place(name)
            if name == "left":
                scene.lane.leave(left)
        assert scene.lane.n_serving == 1
        scene.answer(messages.RESULT, 1, pack("done"))
        await until(lambda: len(scene.heard) == 3)
        scene.answer(messages.RESULT, 2, pack("done"))
        scene.answer(messages.RESULT, 3, pack("done"))
        await until(lambda: len(scene.heard) == 4)

        assert scene.submitted() == ["first", "second", "third", "fourth"]
        assert [message[2] for message in scene.heard] == [0, 1, 0, 1]

    play(script)
