"""What is refused as a sink and as its options, in words that say what to do."""

from collections.abc import Sequence
from typing import Any

import pytest
from tests.records.sinks import Doubling, ListSink, serving_doubles

from mlserve import ConfigurationError, ModelServer
from mlserve.records import CallbackSink, EveryN, InferenceRecord, SinkOptions


class SyncSink:
    options = SinkOptions()

    def open(self) -> None:
        """Open."""

    def write(self, records: Sequence[InferenceRecord]) -> None:
        """Write."""

    def close(self) -> None:
        """Close."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample", 1.5),
        ("sample", -0.1),
        ("sample", float("nan")),
        ("sample", True),
        ("sample", "0.5"),
        ("max_wait_s", -1),
        ("max_wait_s", float("inf")),
        ("write_timeout_s", 0),
        ("write_timeout_s", float("nan")),
        ("max_queue", 0),
        ("max_queue_bytes", 1.5),
        ("batch_size", True),
        ("max_tries", "3"),
        ("redact", "user.email"),
        ("redact", ["user..email"]),
        ("redact", [7]),
        ("name", ""),
        ("name", 7),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}` must be"):
        SinkOptions(**{name: value})


@pytest.mark.parametrize("sink", [print, ListSink, SyncSink(), object(), None])
def test_what_is_no_sink_is_refused_with_what_one_has(sink: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be one such as `CallbackSink"):
        ModelServer(sinks=[sink])


def test_a_sink_of_one_model_is_checked_as_well() -> None:
    with pytest.raises(ConfigurationError, match="must be one such as"):
        ModelServer().add("double", Doubling, sinks=[SyncSink()])  # type: ignore[list-item]


def test_a_sink_alone_is_refused_where_a_list_is_due() -> None:
    with pytest.raises(ConfigurationError, match="must be a list of sinks"):
        ModelServer(sinks=ListSink())  # type: ignore[arg-type]


def test_two_sinks_need_two_names() -> None:
    with pytest.raises(ConfigurationError, match="a sink named 'ListSink' already"):
        serving_doubles(ListSink(), ListSink())

    serving_doubles(ListSink(), ListSink(name="other"))


def test_what_cannot_be_called_is_no_callback() -> None:
    with pytest.raises(ConfigurationError, match="must be a function of a record"):
        CallbackSink("notify")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="`n` must be a whole number"):
        EveryN(0, print)


def test_sinks_say_what_they_call() -> None:
    assert repr(CallbackSink(print)) == "<CallbackSink print>"
    assert repr(EveryN(10, print)) == "<EveryN 10 print>"
