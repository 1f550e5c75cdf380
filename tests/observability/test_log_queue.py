"""Records are queued and written by a thread of their own: nobody waits for a log."""

import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.http.waiting import until

from mlserve.observability import log_queue
from mlserve.observability.access_log import InferenceLine, InferenceLogRecord, JsonFormatter
from mlserve.observability.log_queue import (
    QueuedHandler,
    StderrHandler,
    queued_logging,
    stderr_handler,
)

FLUSH_S = 0.3
SOON_S = 1.0


class Listing(logging.Handler):
    """Keeps what it writes, and the threads that had it write."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.threads: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.threads.add(threading.get_ident())
        self.records.append(record)
        self.lines.append(self.format(record))


class Gated(Listing):
    """Hangs until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.hangs = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.hangs.set()
        assert self.gate.wait(10)
        super().emit(record)


class Raising(Listing):
    """Writes nothing but what is good."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "bad":
            raise OSError("no space left on device")
        super().emit(record)


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of this test's own, whose records go nowhere else."""
    found = logging.getLogger("queued")
    found.setLevel(logging.INFO)
    found.propagate = False
    yield found
    for handler in list(found.handlers):
        found.removeHandler(handler)


@pytest.fixture
def gated(log: logging.Logger) -> Iterator[Gated]:
    handler = Gated()
    log.addHandler(handler)
    yield handler
    handler.gate.set()


@pytest.fixture
def listing(log: logging.Logger) -> Listing:
    handler = Listing()
    log.addHandler(handler)
    return handler


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_queue, "_FLUSH_S", FLUSH_S)
    monkeypatch.setattr(log_queue, "_GATHER_S", 0.0)


def record_of(message: str, **facts: Any) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "mlserve.x", "levelname": "INFO", "msg": message, **facts}
    )


def dropped_by(lines: list[str]) -> int:
    """Add up how many records the lines say were dropped."""
    return sum(json.loads(line).get("n_dropped", 0) for line in lines)


def test_records_are_written_in_their_order_by_another_thread(
    log: logging.Logger, listing: Listing
) -> None:
    with queued_logging("queued"):
        for number in range(500):
            log.info("number %d", number)

    assert listing.lines == [f"number {number}" for number in range(500)]
    assert listing.threads.isdisjoint({threading.get_ident()})


def test_the_handlers_level_and_filters_hold(log: logging.Logger, listing: Listing) -> None:
    listing.setLevel(logging.ERROR)
    listing.addFilter(lambda record: "secret" not in record.getMessage())

    with queued_logging("queued"):
        log.warning("too low")
        log.error("a secret")
        log.error("an error")

    assert listing.lines == ["an error"]


def test_loggers_below_are_queued_too_and_others_are_left_alone(
    log: logging.Logger, listing: Listing
) -> None:
    below, beside = logging.getLogger("queued.below"), logging.getLogger("queuedbeside")
    for logger in (below, beside):
        logger.addHandler(listing)
        logger.propagate = False

    with queued_logging("queued"):
        kinds = {logger.name: type(logger.handlers[0]) for logger in (log, below, beside)}
        for number in range(100):
            (log, below)[number % 2].error("%d", number)

    assert kinds == {"queued": QueuedHandler, "queued.below": QueuedHandler, beside.name: Listing}
    assert listing.lines == [str(number) for number in range(100)]  # one queue for one handler
    below.removeHandler(listing)
    beside.removeHandler(listing)


def test_nobody_waits_for_a_handler_that_hangs(log: logging.Logger, gated: Gated) -> None:
    with queued_logging("queued"):
        log.info("first")
        assert gated.hangs.wait(5)
        started = time.monotonic()
        for number in range(1000):
            log.info("%d", number)
        took_s = time.monotonic() - started
        gated.gate.set()

    assert took_s < SOON_S
    assert gated.lines == ["first", *map(str, range(1000))]


def test_a_handler_that_raises_loses_that_record_alone(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = Raising()
    log.addHandler(handler)

    with queued_logging("queued"):
        for text in ("good", "bad", "good again"):
            log.info(text)

    assert handler.lines == ["good", "good again"]


def test_the_text_is_made_when_the_record_is(log: logging.Logger, gated: Gated) -> None:
    state = ["before"]

    with queued_logging("queued"):
        log.info("%s", state)
        state[0] = "after"
        gated.gate.set()

    assert gated.lines == ["['before']"]


def test_an_exception_is_written_with_its_traceback_and_not_kept(
    log: logging.Logger, listing: Listing
) -> None:
    listing.setFormatter(JsonFormatter())

    with queued_logging("queued"):
        try:
            raise ValueError("one of these")
        except ValueError:
            log.exception("it.happened", extra={"request_id": "r-1"})

    line = json.loads(listing.lines[0])
    assert (line["message"], line["request_id"]) == ("it.happened", "r-1")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: one of these")
    assert listing.records[0].exc_info is None  # its frames would keep a request alive


def test_the_line_of_an_inference_is_written_by_the_thread_too(
    log: logging.Logger, listing: Listing
) -> None:
    listing.setFormatter(JsonFormatter())
    facts = dict.fromkeys(InferenceLine.__annotations__, 0) | {"request_id": "r-1"}

    with queued_logging("queued"):
        log.handle(InferenceLogRecord(cast("InferenceLine", facts), {"n_tokens": 3}))

    line = json.loads(listing.lines[0])
    assert (line["request_id"], line["n_tokens"]) == ("r-1", 3)
    assert listing.threads.isdisjoint({threading.get_ident()})


def test_other_handlers_of_the_same_record_still_see_the_exception(
    log: logging.Logger, listing: Listing
) -> None:
    other = Listing()

    with queued_logging("queued"):
        log.addHandler(other)
        log.error("%s", "text", exc_info=ValueError("x"))

    assert other.records[0].args == ("text",)
    assert other.records[0].exc_info is not None


def test_a_full_queue_drops_and_says_how_many_once_half_is_free() -> None:
    gated = Gated()
    gated.setFormatter(JsonFormatter())
    queued = QueuedHandler(gated, capacity=4)

    queued.handle(record_of("taken by the thread"))
    assert gated.hangs.wait(5)
    for number in range(9):
        queued.handle(record_of(str(number)))
    gated.gate.set()
    until(lambda: len(gated.lines) == 5)
    queued.handle(record_of("after"))
    queued.finish()
    is_written = queued.wait(5)

    lines = [json.loads(line) for line in gated.lines]
    assert is_written
    assert [line["message"] for line in lines] == [
        "taken by the thread",
        *"0123",
        "log.lines.dropped",
        "after",
    ]
    assert (lines[5]["n_dropped"], lines[5]["level"]) == (5, "warning")


def test_what_was_dropped_last_is_said_at_the_end() -> None:
    gated = Gated()
    gated.setFormatter(JsonFormatter())
    queued = QueuedHandler(gated, capacity=1)

    queued.handle(record_of("taken by the thread"))
    assert gated.hangs.wait(5)
    for number in range(3):
        queued.handle(record_of(str(number)))
    gated.gate.set()
    queued.finish()
    is_written = queued.wait(5)

    assert is_written
    assert dropped_by(gated.lines[-1:]) == 2


def test_a_record_that_cannot_be_written_as_text_counts_as_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listing = Listing()
    listing.setFormatter(JsonFormatter())
    queued = QueuedHandler(listing)

    queued.handle(record_of("%d", args=("no number",)))
    queued.finish()
    queued.wait(5)

    assert dropped_by(listing.lines) == 1
    assert capsys.readouterr().err == ""


@given(bursts=st.lists(st.integers(1, 12), max_size=8), capacity=st.integers(1, 6))
def test_every_record_is_written_in_order_or_counted_as_dropped(
    bursts: list[int], capacity: int
) -> None:
    gated = Gated()
    gated.setFormatter(JsonFormatter())
    queued = QueuedHandler(gated, capacity)
    n_logged = 0

    for burst in bursts:
        for _ in range(burst):
            queued.handle(record_of(str(n_logged)))
            n_logged += 1
        gated.gate.set()
        until(lambda: queued._records.qsize() == 0)
        gated.gate.clear()
    gated.gate.set()
    queued.finish()
    assert queued.wait(5)

    numbers = [int(text) for line in gated.lines if (text := json.loads(line)["message"]).isdigit()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + dropped_by(gated.lines) == n_logged


def test_handlers_are_put_back_when_all_is_written(log: logging.Logger, listing: Listing) -> None:
    with queued_logging("queued"):
        was_there = listing in log.handlers

    assert not was_there
    assert listing in log.handlers
    assert QueuedHandler not in map(type, log.handlers)


def test_a_handler_that_the_application_took_away_is_not_put_back(
    log: logging.Logger, listing: Listing
) -> None:
    with queued_logging("queued"):
        for handler in list(log.handlers):
            log.removeHandler(handler)

    assert log.handlers == []


def test_what_is_queued_is_written_when_the_block_raises(
    log: logging.Logger, listing: Listing
) -> None:
    def end() -> None:
        with queued_logging("queued"):
            log.info("the last words")
            sys.exit(3)

    with pytest.raises(SystemExit):
        end()

    assert listing.lines == ["the last words"]


def test_a_handler_that_hangs_is_waited_for_in_vain_and_not_for_long(
    log: logging.Logger, gated: Gated
) -> None:
    started = time.monotonic()
    with queued_logging("queued"):
        log.info("unheard")
        assert gated.hangs.wait(5)
    took_s = time.monotonic() - started
    log.info("nobody waits for this one either")

    assert took_s < FLUSH_S + SOON_S
    assert gated.lines == []


def test_a_handler_that_hangs_takes_no_time_from_another_one(
    log: logging.Logger, gated: Gated, listing: Listing
) -> None:
    with queued_logging("queued"):
        log.info("heard")
        assert gated.hangs.wait(5)

    assert listing.lines == ["heard"]
    assert listing in log.handlers
    assert gated not in log.handlers


def test_the_end_of_the_process_does_not_wait_for_a_handler_that_hangs(
    log: logging.Logger, gated: Gated
) -> None:
    """What `logging.shutdown` does at the exit: it takes the lock of every handler."""
    with queued_logging("queued"):
        log.info("unheard")
        assert gated.hangs.wait(5)

    assert gated.lock is not None
    assert gated.lock.acquire(timeout=1)
    gated.lock.release()


def test_a_signal_handler_may_log_amid_a_record(log: logging.Logger, listing: Listing) -> None:
    n_signals = n_records = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal n_signals
        n_signals += 1
        log.info("signal")

    before = signal.signal(signal.SIGALRM, note)
    try:
        with queued_logging("queued"):
            signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
            while n_signals < 100 and n_records + n_signals < 9000:  # so many find room
                n_records += 1
                log.info("record")
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert n_signals > 0
    assert listing.lines.count("record") == n_records
    assert listing.lines.count("signal") == n_signals


class Described:
    """What cannot be written as text."""

    def __str__(self) -> str:
        raise RuntimeError


def test_lines_reach_the_file_descriptor_in_order() -> None:
    reader, writer = os.pipe()
    handler = StderrHandler(writer)

    for text in ("first", "ünicode", "half \ud800 a pair"):
        handler.handle(record_of(text))
    os.close(writer)

    with os.fdopen(reader, encoding="utf-8") as file:
        assert file.read().splitlines() == ["first", "ünicode", "half \\ud800 a pair"]


def test_lines_that_gather_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_queue, "_GATHER_S", 30.0)
    reader, writer = os.pipe()
    writes: list[bytes] = []

    def write(data: bytes) -> int:
        writes.append(data)
        return len(data)

    handler = StderrHandler(writer)
    monkeypatch.setattr(handler, "_write", write)
    queued = QueuedHandler(handler)

    for number in range(3):
        queued.handle(record_of(str(number)))
    queued.finish()
    is_written = queued.wait(5)

    os.close(reader)
    os.close(writer)
    assert is_written
    assert b"".join(writes) == b"0\n1\n2\n"
    assert len(writes) <= 2  # the thread may have taken the first one alone


@pytest.mark.parametrize("is_written", [False, True])
def test_lines_of_several_writers_to_one_full_pipe_stay_whole(is_written: bool) -> None:
    reader, writer = os.pipe()
    lines = {text * 299 for text in "abcd"}

    def write(line: str) -> None:
        handler = StderrHandler(writer)  # as in a process of its own
        for _ in range(5):
            handler.handle_all([line if is_written else record_of(line)] * 250)

    threads = [threading.Thread(target=write, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    received = bytearray()
    while len(received) < len(lines) * 5 * 250 * 300:
        received += os.read(reader, 1000)
    for thread in threads:
        thread.join(5)
    os.close(reader)
    os.close(writer)

    assert set(received.decode().splitlines()) == lines


@given(
    st.lists(st.tuples(st.booleans(), st.text(st.characters(codec="ascii"), max_size=6000))),
)
def test_records_and_written_lines_are_written_in_their_order_and_few_at_once(
    entries: list[tuple[bool, str]],
) -> None:
    entries = [(is_written, text.replace("\n", "")) for is_written, text in entries]
    writes: list[bytes] = []
    handler = StderrHandler(-1)
    handler._write_all = writes.append  # type: ignore[method-assign,assignment]

    handler.handle_all([text if is_written else record_of(text) for is_written, text in entries])

    assert b"".join(writes) == b"".join(f"{text}\n".encode() for _, text in entries)
    for data in writes:
        assert len(data) <= select.PIPE_BUF or data.count(b"\n") == 1


def test_a_filter_that_raises_does_not_end_the_log() -> None:
    reader, writer = os.pipe()
    handler = StderrHandler(writer)

    def choose(record: logging.LogRecord) -> bool:
        if record.getMessage() == "bad":
            raise KeyError("no such fact")
        return record.getMessage() != "unwanted"

    handler.addFilter(choose)
    queued = QueuedHandler(handler)
    for text in ("bad", "unwanted", "good"):
        queued.handle(record_of(text))
    queued.finish()
    is_written = queued.wait(5)
    os.close(writer)

    with os.fdopen(reader) as file:
        assert file.read() == "good\n"
    assert is_written


def test_a_record_that_cannot_be_formatted_is_said_to_be_one() -> None:
    reader, writer = os.pipe()
    handler = StderrHandler(writer)
    handler.setFormatter(JsonFormatter())

    handler.handle(record_of("text", fact=Described()))
    os.close(writer)

    with os.fdopen(reader) as file:
        assert file.read() == "INFO mlserve.x: log.format.failed RuntimeError\n"


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handler = StderrHandler(writer)
    text = "x" * 300_000  # more than a pipe holds
    received: list[bytes] = []

    def read() -> None:
        while data := os.read(reader, 65_536):
            received.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    handler.handle(record_of(text))
    os.close(writer)
    thread.join(5)
    os.close(reader)

    assert b"".join(received).decode() == f"{text}\n"


def test_a_reader_that_has_left_costs_the_line_alone() -> None:
    reader, writer = os.pipe()
    os.close(reader)

    StderrHandler(writer).handle(record_of("unheard"))

    os.close(writer)


def test_a_full_disk_costs_the_line_alone() -> None:
    with Path("/dev/full").open("wb") as full:
        StderrHandler(full.fileno()).handle(record_of("unheard"))


@pytest.mark.parametrize("stream", [None, object()], ids=["closed", "no file"])
def test_a_process_without_stderr_logs_nowhere(
    monkeypatch: pytest.MonkeyPatch, stream: object
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "raiseExceptions", False)

    handler = stderr_handler()

    handler.handle(record_of("unheard"))
    assert type(handler) is logging.StreamHandler
