"""What the tests of bad inputs share: a count of all that was sent, and the server's failures."""

from collections.abc import Iterator

import pytest
from tests.http.failures import Failures, watching_failures
from tests.http.wire import TALLY


@pytest.fixture(scope="session", autouse=True)
def _tally() -> Iterator[None]:
    """Note what was counted of bad inputs."""
    yield
    TALLY.note()


@pytest.fixture(scope="module")
def failures() -> Iterator[Failures]:
    """Keeps what servers log as their own failures while the tests of a module run."""
    with watching_failures() as failures:
        yield failures
