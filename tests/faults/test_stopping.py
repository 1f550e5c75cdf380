"""A server stopped under load loses nothing; a stream stops when its client has left."""

import asyncio
import socket
import time
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from tests.faults.draining import stop_under_load
from tests.faults.flaky import Tokens
from tests.faults.notebook import Notebook
from tests.faults.processes import serving
from tests.faults.rig import Rig, Tally
from tests.faults.table import Mode

from mlserve import ModelServer, Replicas
from mlserve.testing import running

pytestmark = pytest.mark.slow


def test_a_stop_under_load_answers_every_request_on_every_open_connection(
    mode: Mode, rig: Rig
) -> None:
    with serving(FAULTS_PLACEMENT=mode.placement) as served:
        records = asyncio.run(stop_under_load(served, mode, rig.dice, rig.dice.uniform(0.1, 0.4)))
        code = served.process.wait(10)
        log = served.log()

    rig.note(records, n_faults=1)
    others = {record.outcome for record in records} - {(200, None), (503, "draining")}
    assert (code, others) == (0, set())
    assert len(records) > 16
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("placement", "attempt"),
    [*(("thread", n) for n in range(5)), *(("process", n) for n in range(2))],
)
def test_a_stream_whose_client_has_left_computes_at_most_two_more_tokens(
    placement: Literal["thread", "process"], attempt: int, tally: Tally, tmp_path: Path
) -> None:
    notes = Notebook(tmp_path)
    server = ModelServer()
    server.add("tokens", partial(Tokens, notes), replicas=Replicas(placement=placement))
    request = (
        b"POST /v1/models/tokens/stream HTTP/1.1\r\nHost: test\r\n"
        b'Content-Type: application/json\r\nContent-Length: 4\r\n\r\n"go"'
    )

    with running(server, timeout_s=15) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port or 80), 5) as connection:
            connection.sendall(request)
            received = b""
            while received.count(b"data: ") < 3 + attempt:
                received += connection.recv(4096)
        left_at = time.monotonic()
        notes.wait_for("closed", 5)

    [closed_at] = map(float, notes.read("closed"))
    n_after = sum(float(begun_at) > left_at for begun_at in notes.read("begun"))
    tally.tokens_after_leaving = max(tally.tokens_after_leaving, n_after)
    tally.slowest_stop_s = max(tally.slowest_stop_s, closed_at - left_at)
    assert n_after <= 2
