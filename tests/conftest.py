"""What holds for every test."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
from hypothesis import settings
from tests.canaries import watching, watching_errors

from mlserve.observability import gathering, metrics
from mlserve.observability.access_log import JsonFormatter

# A busy machine must not fail a law: pytest's own timeout bounds each test.
settings.register_profile("mlserve", deadline=None)
settings.load_profile("mlserve")


@pytest.fixture(autouse=True)
def _quick_starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the garbage of torch alone: a collection of it at each start would double the time."""
    if "freeze_gc" not in request.fixturenames:
        monkeypatch.setattr("mlserve.registry._relieved_gc", _untouched_gc)


@pytest.fixture(scope="session", autouse=True)
def _no_canary_in_any_log_or_error() -> Iterator[None]:
    """Look for what the tests have sent as clients in all that was logged and all error bodies."""
    with watching(JsonFormatter()) as watch, watching_errors() as told:
        yield
    assert watch.found == []
    assert told == []


@pytest.fixture(scope="module", autouse=True)
def _no_models_of_other_files_in_metrics() -> Iterator[None]:
    """Forget a file's models: all that a whole run has would make each `/metrics` take seconds."""
    yield
    for known in (metrics.model_metrics, metrics.batch_metrics, metrics.cache_metrics):
        known.cache_clear()
    for family in metrics.FAMILIES:
        if family._labelnames:
            family.clear()
    gathering._all.clear()


@pytest.fixture
def switching() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Leave what a test does, also in threads that it starts, as fast as users have it."""
    trace, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(of_threads)
    sys.settrace(trace)


@pytest.fixture(scope="module")
def unmeasured() -> Iterator[None]:
    """Leave processes that tests start as fast as users have them: without measured coverage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


def _untouched_gc(*, enabled: bool) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)
