"""What the fault tests share: the seed, running servers, and a count of all that was sent."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.rig import Rig, Tally
from tests.faults.table import MODES, Mode

SEED = int(os.environ.get("FAULT_SEED", "20260101"))


@pytest.fixture(scope="session")
def tally() -> Iterator[Tally]:
    """Counts what was sent and what came of it; written where `FAULT_REPORT` says."""
    counted = Tally(seed=SEED)
    yield counted
    if path := os.environ.get("FAULT_REPORT"):
        Path(path).write_text(json.dumps(counted.figures()), encoding="utf-8")


@pytest.fixture(params=MODES, ids=lambda mode: mode.name)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each way to serve a model."""
    found: Mode = request.param
    return found


@pytest.fixture
def rig(request: pytest.FixtureRequest, tally: Tally) -> Rig:
    """Plays requests, with dice of the test's own."""
    return Rig(random.Random(f"{SEED} {request.node.name}"), tally)
