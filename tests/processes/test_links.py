"""Ways to replicas that end although the replica lives, or that cannot be made at once."""

import errno
from collections.abc import Iterator

import pytest
from tests.processes.handlers import Obedient
from tests.processes.serving import Served, served

from mlserve.processes.client import ReplicaClient
from mlserve.processes.lane import RemoteLane
from mlserve.processes.process import ChildProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def obedient() -> Iterator[Served]:
    with served(Obedient) as model:
        yield model


@pytest.fixture
def model(obedient: Served) -> Served:
    return obedient.ready()


def client_of(model: Served) -> ReplicaClient:
    lane = model.model.engine._lane
    assert isinstance(lane, RemoteLane)
    return lane._clients[0]


def cut(model: Served) -> None:
    """End the way to the replica, as a handler can that closes sockets which are not its own."""
    before = client_of(model)
    before.close()
    model.wait(lambda: not before.tickets and before._ended.is_set())


def test_a_way_that_ends_is_made_again_while_the_replica_lives(model: Served) -> None:
    pid = model.pid()

    cut(model)
    answer = model.ask("a")

    assert answer["pid"] == pid
    assert model.model.state == "ready"


def test_a_replica_to_which_the_way_ends_again_and_again_is_replaced(model: Served) -> None:
    pid = model.pid()

    answers = []
    for _ in range(6):
        cut(model)
        answers.append(model.ask("a")["pid"])

    assert pid not in answers[-1:]
    assert answers.count(pid) >= 2
    assert model.pid() == answers[-1]


def test_a_replica_that_can_take_no_way_is_replaced(model: Served) -> None:
    pid = model.ask("open no more files")["pid"]

    cut(model)
    answer = model.ask("a")

    assert answer["pid"] != pid


def test_a_model_is_not_ready_before_a_replica_is_connected_which_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(process: ChildProcess, index: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(ChildProcess, "introduce", refuse)
        with served(Obedient) as model:
            before = model.model.state
            patched.undo()
            answer = model.ask("a")
            after = model.model.state

    assert (before, answer["text"], after) == ("restarting", "a", "ready")
