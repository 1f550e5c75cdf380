"""What is done with is freed at once, without waiting for the garbage collector."""

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from tests.processes.handlers import Noting
from tests.processes.serving import Served, served

from mlserve import ServerSettings
from mlserve.processes.frames import Decoder

UNFROZEN = ServerSettings(freeze_gc=False)


@contextmanager
def collected_later() -> Iterator[Counter[str]]:
    """Count what only the collector would have freed, by class, once the block has ended."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        ours = (type(thing) for thing in gc.garbage)
        found.update(kind.__name__ for kind in ours if kind.__module__.startswith("mlserve"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Served]:
    with served(partial(Noting, tmp_path / "notes"), settings=UNFROZEN) as model:
        model.ask("")
        model.read("3")
        yield model


def test_requests_and_streams_leave_nothing_to_the_collector(model: Served) -> None:
    with collected_later() as found:
        for _ in range(5):
            model.ask("")
            model.read("40")

    assert found == {}


def test_a_death_leaves_nothing_to_the_collector(model: Served) -> None:
    with collected_later() as found:
        model.kill()
        model.ask("")

    assert found == {}


def test_a_reload_frees_the_lane_and_the_memory_that_its_processes_shared(model: Served) -> None:
    fleet, board = weakref.ref(model.fleet), weakref.ref(model.fleet.board)

    with collected_later():
        model.run(model.model.reload())
        model.ask("")
        model.wait(lambda: fleet() is None and board() is None)


def test_what_a_decoder_has_received_into_is_freed_with_it() -> None:
    decoder = Decoder()
    decoder.buffer()[:4] = b"MLS1"
    decoder.advance(4)
    alive = weakref.ref(decoder)

    gc.disable()
    try:
        del decoder
        assert alive() is None
    finally:
        gc.enable()
