"""What holds for every test."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
from hypothesis import settings

# A busy machine must not fail a law: pytest's own timeout bounds each test.
settings.register_profile("mlserve", deadline=None)
settings.load_profile("mlserve")


@pytest.fixture(autouse=True)
def _quick_starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the garbage of torch alone: a collection of it at each start would double the time."""
    if "freeze_gc" not in request.fixturenames:
        monkeypatch.setattr("mlserve.registry._relieved_gc", _untouched_gc)


def _untouched_gc(*, enabled: bool) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)
