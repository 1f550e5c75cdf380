"""What the fault tests share: the seed, running servers, and a count of all that was sent."""

import os
import random
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from tests.faults.dying import Deaths
from tests.faults.handler import FaultyHandler
from tests.faults.rig import Rig, Tally
from tests.faults.table import PLACED_MODES, Mode
from tests.figures import note

# What becomes of a process does not depend on how large its batches may be.
SYNC_MODES = [
    mode
    for mode in PLACED_MODES
    if mode.handler is FaultyHandler and (mode.placement, mode.name) != ("process", "single")
]
SEED = int(os.environ.get("FAULT_SEED", "20260101"))


@pytest.fixture(scope="session")
def tally() -> Iterator[Tally]:
    """Counts what was sent and what came of it."""
    counted = Tally(seed=SEED)
    yield counted
    note("faults", **asdict(counted))


@pytest.fixture(scope="session")
def deaths() -> Iterator[Deaths]:
    """Counts what was sent to models whose processes die, and what came of it."""
    counted = Deaths(seed=SEED)
    yield counted
    note("deaths", **counted.figures())


@pytest.fixture(scope="module", autouse=True)
def _started_as_fast_as_users_have_it(unmeasured: None) -> None:
    """Have processes that take the place of dead ones do nothing but begin."""


@pytest.fixture(params=SYNC_MODES, ids=lambda mode: mode.id)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each way to serve a model whose hooks run in threads, as those of the tests' own do."""
    found: Mode = request.param
    return found


@pytest.fixture
def rig(request: pytest.FixtureRequest, tally: Tally) -> Rig:
    """Plays requests, with dice of the test's own."""
    return Rig(random.Random(f"{SEED} {request.node.name}"), tally)
