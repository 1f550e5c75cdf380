"""A server stopped under load loses nothing; a stream stops when its client has left."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from tests.faults.draining import stop_under_load
from tests.faults.processes import serving
from tests.faults.rig import Rig, Tally
from tests.faults.table import Mode

from mlserve import ModelHandler, ModelServer
from mlserve.testing import running

pytestmark = pytest.mark.slow

TOKEN_S = 0.02


def test_a_stop_under_load_answers_every_request_on_every_open_connection(
    mode: Mode, rig: Rig
) -> None:
    with serving() as served:
        records = asyncio.run(stop_under_load(served, mode, rig.dice, rig.dice.random() * 0.4))
        code = served.process.wait(10)
        log = served.log()

    rig.note(records, n_faults=1)
    others = {record.outcome for record in records} - {(200, None), (503, "draining")}
    assert (code, others) == (0, set())
    assert len(records) > 16
    assert "Traceback" not in log


class Tokens(ModelHandler[str, int]):
    """A token every 20 ms, for ever; notes when it began with each, and when it was closed."""

    begun: ClassVar[list[float]] = []
    closed: ClassVar[threading.Event] = threading.Event()

    def stream(self, item: str) -> Iterator[int]:
        try:
            while True:
                self.begun.append(time.monotonic())
                time.sleep(TOKEN_S)  # stands for the model
                yield len(self.begun)
        finally:
            self.closed.set()


@pytest.mark.parametrize("attempt", range(5))
def test_a_stream_whose_client_has_left_computes_at_most_two_more_tokens(
    attempt: int, tally: Tally
) -> None:
    Tokens.begun.clear()
    Tokens.closed.clear()
    request = (
        b"POST /v1/models/tokens/stream HTTP/1.1\r\nHost: test\r\n"
        b'Content-Type: application/json\r\nContent-Length: 4\r\n\r\n"go"'
    )

    with running(ModelServer().add("tokens", Tokens), timeout_s=15) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port or 80), 5) as connection:
            connection.sendall(request)
            received = b""
            while received.count(b"data: ") < 3 + attempt:
                received += connection.recv(4096)
        left_at = time.monotonic()
        was_closed = Tokens.closed.wait(5)
        took_s = time.monotonic() - left_at

    n_after = sum(begun_at > left_at for begun_at in Tokens.begun)
    tally.tokens_after_leaving = max(tally.tokens_after_leaving, n_after)
    tally.slowest_stop_s = max(tally.slowest_stop_s, took_s)
    assert was_closed
    assert n_after <= 2
