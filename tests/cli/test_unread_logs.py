"""A log that nobody reads, or that has no room, holds nothing up; one that is read is whole."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from tests.cli.projects import serving, write_project
from tests.http.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that is full, and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def full() -> Iterator[int]:
    """A file on a full disk."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/ready", timeout=5).status_code == 200
    return False


@pytest.mark.parametrize("log", ["unread", "full"])
def test_a_log_that_takes_nothing_holds_up_neither_answers_nor_the_end(
    log: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder, port = write_project(tmp_path), free_port()
    url = f"http://127.0.0.1:{port}"
    stderr: int = request.getfixturevalue(log)

    with serving(folder, "reviews:server", port=port, stderr=stderr) as served:
        until(lambda: is_ready(url), 15)
        with httpx2.Client(base_url=url, timeout=5) as client:
            answers = [client.post("/v1/models/shout/predict", json="hello") for _ in range(100)]
        signalled_at = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        code = served.exit_code()
        took_s = time.monotonic() - signalled_at

    assert [answer.json() for answer in answers] == ["HELLO"] * 100
    assert "unload\n" in served.lines
    assert code == 0
    assert took_s < 9  # the log is waited for two seconds


def test_every_line_is_written_before_the_end(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    with serving(folder, "reviews:server") as served:
        with served.client() as client:
            for number in range(200):
                headers = {"X-Request-Id": f"r-{number}"}
                client.post("/v1/models/shout/predict", json="hello", headers=headers)
        served.process.send_signal(signal.SIGTERM)
        served.exit_code()

    lines = [json.loads(line) for line in served.lines if line.startswith("{")]
    written = [line["request_id"] for line in lines if line["logger"] == "mlserve.access"]
    assert written == [f"r-{number}" for number in range(200)]
