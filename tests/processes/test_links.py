"""Ways to replicas that end although the replica lives, or that cannot be made at once."""

from collections.abc import Iterator

import pytest
from tests.processes.handlers import Obedient
from tests.processes.serving import Served, served

from mlserve.processes.client import ReplicaClient
from mlserve.processes.lane import RemoteLane

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
