"""Log records on their way to the process whose handlers write them."""

import logging
import threading
from typing import Any

import pytest

from mlserve.processes import messages
from mlserve.processes.frames import unpack
from mlserve.processes.logs import LinkHandler, log_levels, write_record


class FakeLink:
    """Keeps what it is to send, or is congested."""

    def __init__(self) -> None:
        self.is_congested = False
        self.sent: list[dict[str, Any]] = []

    def send(self, message: tuple[Any, ...]) -> None:
        kind, packed = message
        assert kind == messages.LOG
        self.sent.append(unpack(packed))


class Direct:
    """A mailbox that makes each call at once."""

    def post(self, function: Any, *args: Any) -> None:
        function(*args)


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def log(link: FakeLink) -> logging.Logger:
    """Give a logger whose records go to the link."""
    far: Any = link
    near: Any = Direct()
    logger = logging.Logger("tests.far")  # noqa: LOG001 - one that writes nowhere else
    logger.addHandler(LinkHandler(far, near))
    return logger


def test_a_record_arrives_with_its_text_level_and_extras(
    log: logging.Logger, link: FakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    log.warning("Seen %d of %s.", 3, [4], extra={"n_seen": 3})

    write_record(link.sent[0])

    (record,) = caplog.records
    assert (record.getMessage(), record.levelname, record.name) == (
        "Seen 3 of [4].",
        "WARNING",
        "tests.far",
    )
    assert record.__dict__["n_seen"] == 3


def test_an_exception_arrives_as_its_text(log: logging.Logger, link: FakeLink) -> None:
    try:
        raise KeyError(threading.Lock())  # which cannot be pickled
    except KeyError:
        log.exception("It went wrong.")

    assert "KeyError" in link.sent[0]["exc_text"]
    assert link.sent[0]["exc_info"] is None


def test_what_cannot_be_sent_arrives_as_text(log: logging.Logger, link: FakeLink) -> None:
    log.error("With %s.", "a lock", extra={"lock": threading.Lock()})

    assert link.sent[0]["msg"] == "With a lock."
    assert link.sent[0]["levelname"] == "ERROR"
    assert "lock" not in link.sent[0]


def test_a_record_whose_arguments_do_not_fit_arrives_all_the_same(
    log: logging.Logger, link: FakeLink
) -> None:
    log.warning("Seen %d.", "nothing")

    assert link.sent[0]["msg"] == "Seen %d. (TypeError in its arguments)"


class Unreadable(str):
    """A message that has no text at all."""

    __slots__ = ()

    def __str__(self) -> str:
        raise ValueError("It has no text.")


@pytest.mark.parametrize(
    "facts",
    [
        {"name": "tests.far", "msg": Unreadable("Seen %d."), "args": ("nothing",)},
        {"name": threading.Lock(), "msg": "Seen."},  # which cannot be pickled
    ],
)
def test_a_record_that_cannot_be_sent_at_all_is_reported_and_raises_nothing_where_it_was_logged(
    log: logging.Logger, link: FakeLink, capsys: pytest.CaptureFixture[str], facts: dict[str, Any]
) -> None:
    log.handle(logging.makeLogRecord({"levelno": logging.WARNING} | facts))
    log.info("After.")

    assert [sent["msg"] for sent in link.sent] == ["After."]
    assert "--- Logging error ---" in capsys.readouterr().err


def test_records_that_come_too_fast_are_counted_and_dropped(
    log: logging.Logger, link: FakeLink
) -> None:
    link.is_congested = True
    for number in range(3):
        log.info("Dropped %d.", number)
    link.is_congested = False
    log.info("After.")
    log.info("Later.")

    texts = [facts["msg"] for facts in link.sent]
    assert "3 log records" in texts[0]
    assert texts[1:] == ["After.", "Later."]


def test_a_record_below_the_level_of_its_logger_is_not_written(
    log: logging.Logger, link: FakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    log.info("Not here.")
    caplog.set_level(logging.ERROR, "tests.far")

    write_record(link.sent[0])

    assert not caplog.records


def test_levels_are_those_of_loggers_that_have_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tests.near")
    logging.getLogger("tests.near.child")

    levels = log_levels()

    assert levels["tests.near"] == logging.DEBUG
    assert "tests.near.child" not in levels
    assert levels[""] == logging.getLogger().level
