"""
Every fault in every mode, with healthy requests beside it: whose fault it is pays, nobody else.

`FAULT_SEED` gives other contents, orders and times than the usual ones.
"""

from collections.abc import Iterator
from functools import partial

import pytest
from tests.faults.client import Record
from tests.faults.notebook import Notebook
from tests.faults.rig import N_FAULTY, Rig
from tests.faults.table import FAULTS, PLACED_MODES, Fault, Mode

from mlserve import ModelServer
from mlserve.testing import running

pytestmark = pytest.mark.slow

Served = tuple[Mode, ModelServer, int, Notebook]


@pytest.fixture(scope="module", params=PLACED_MODES, ids=lambda mode: mode.id)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One server for all faults of a mode: what one leaves behind meets the next."""
    mode: Mode = request.param
    notes = Notebook(tmp_path_factory.mktemp(mode.id))
    server = mode.server(partial(mode.handler, notes))
    with running(server, timeout_s=15) as client:
        yield mode, server, client.base_url.port or 80, notes


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_answered_as_it_should_be_and_harms_nobody_else(
    fault: Fault, served: Served, rig: Rig
) -> None:
    mode, server, port, _ = served
    faulty = [fault.request(mode, number, rig.dice) for number in range(N_FAULTY)]
    openers = [rig.opener(mode)] if fault.shares_batches and mode.max_size > 1 else []

    records = rig.play_fault(port, mode, faulty, fault.expected(mode), *openers)

    rig.require_recovered(port, mode, server)
    assert_none_is_slow(records)


def test_no_fault_has_ended_a_replica(served: Served) -> None:
    _, _, _, notes = served

    assert len(notes.read("load")) == 1


def assert_none_is_slow(records: list[Record]) -> None:
    assert max(record.latency_s for record in records) < 5.0
