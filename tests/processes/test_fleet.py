"""What a fleet tells of its replicas: with processes that are none, on a clock."""

import asyncio
import errno
import logging
import socket
from collections import Counter
from typing import Any

import pytest
from tests.fake_time import run_with_clock
from tests.processes.lives import FakeProcess

from mlserve import ModelServer, Replicas
from mlserve.processes import messages
from mlserve.processes.fleet import Fleet, FleetStatus
from mlserve.testing import EchoHandler, FakeClock


class LoadedProcess(FakeProcess):
    """Is loaded at once, and ends when it is told to."""

    async def start(self, *facts: Any) -> None:
        self.say(messages.READY, 1)

    def send(self, *message: Any) -> None:
        if message == (messages.STOP,):
            self.exit(0)

    def introduce(self, index: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.close()
        return theirs


class RefusingListener:
    """An HTTP process that takes no way to a replica."""

    def __init__(self) -> None:
        self.n_offered: Counter[int] = Counter()

    def replica_up(self, number: int, sock: socket.socket) -> None:
        sock.close()
        self.n_offered[number] += 1
        raise OSError(errno.EMFILE, "Too many open files")

    def note_status(self, status: FleetStatus) -> None:
        """No test looks."""

    def note_progress(self, number: int, fraction: float, note: str) -> None:
        """No test looks."""

    def note_warming(self) -> None:
        """No test looks."""


def test_ways_that_are_refused_again_and_again_are_logged_once_a_minute_for_each_replica(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mlserve.processes.keeper.ChildProcess", LoadedProcess)
    clock, listener = FakeClock(), RefusingListener()
    replicas = Replicas(placement="process", count=2)
    spec = ModelServer().add("m", EchoHandler, replicas=replicas).model_for("m").engine.spec

    async def scenario() -> None:
        fleet = Fleet(spec, clock=clock)
        await fleet.start(None)
        for row in fleet.board.replicas:
            row.kill_at = clock() + 1e6  # a hook runs, and nobody expects another sign of life
        fleet.listen(0, listener)
        await asyncio.sleep(150.0)
        await fleet.close()

    run_with_clock(clock, scenario())

    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert {record.msg for record in warnings} == {"replica.introduce.failed"}
    assert Counter(record.__dict__["replica"] for record in warnings) == {0: 3, 1: 3}
    assert min(listener.n_offered.values()) > 200
