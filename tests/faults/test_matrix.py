"""
Every fault in every mode, with healthy requests beside it: whose fault it is pays, nobody else.

`FAULT_SEED` gives other contents, orders and times than the usual ones.
"""

from collections.abc import Iterator

import pytest
from tests.faults.client import Record
from tests.faults.rig import N_FAULTY, Rig
from tests.faults.table import FAULTS, MODES, Fault, Mode

from mlserve import ModelServer
from mlserve.testing import running

pytestmark = pytest.mark.slow

Served = tuple[Mode, ModelServer, int]


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: mode.name)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """One server for all faults of a mode: what one leaves behind meets the next."""
    mode: Mode = request.param
    server = mode.server(mode.handler)
    with running(server, timeout_s=15) as client:
        yield mode, server, client.base_url.port or 80


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_answered_as_it_should_be_and_harms_nobody_else(
    fault: Fault, served: Served, rig: Rig
) -> None:
    mode, server, port = served
    faulty = [fault.request(mode, number, rig.dice) for number in range(N_FAULTY)]
    openers = [rig.opener(mode)] if fault.shares_batches and mode.max_size > 1 else []

    records = rig.play_fault(port, mode, faulty, fault.expected(mode), *openers)

    rig.require_recovered(port, mode, server)
    assert_none_is_slow(records)


def assert_none_is_slow(records: list[Record]) -> None:
    assert max(record.latency_s for record in records) < 5.0
