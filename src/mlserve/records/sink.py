"""Where records go: the protocol, and the options that every sink has."""

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mlserve.errors import ConfigurationError
from mlserve.records.record import InferenceRecord
from mlserve.records.redaction import is_path

__all__ = ["Redact", "Sink", "SinkOptions", "is_sampled", "require_sink"]

Redact = Callable[[InferenceRecord], InferenceRecord] | Sequence[str]
"""What changes each record before it is written, or paths of values to replace in payloads."""

_METHODS = ("open", "write", "close")


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkOptions:
    """
    What of the requests a sink gets, and how.

    Raises:
        ConfigurationError: If a value is out of range, on creation.
    """

    name: str | None = None
    """Its name in metrics and `/ready`; `None` = that of its class."""
    sample: float = 1.0
    """Which share of the requests, from 0 to 1; the same ids are taken each time."""
    keep_payloads: bool = False
    """Whether the bodies of requests and answers are in the records."""
    redact: Redact = ()
    """A function that gives each record as it may be kept, or paths whose values are replaced in
    the payloads, such as `("user.email", "messages.content")`."""
    max_queue: int = 10_000
    """How many records may wait; further ones are dropped and counted."""
    max_queue_bytes: int = 64 * 2**20
    """How many bytes their payloads may have; likewise."""
    batch_size: int = 500
    """How many records are written at once."""
    max_wait_s: float = 1.0
    """How long a record waits for others to be written with, in seconds."""
    write_timeout_s: float = 30.0
    """How long the sink may take to open, and for each batch, in seconds."""
    max_tries: int = 5
    """How often a batch is tried; the waits between begin with half a second and double."""
    required: bool = False
    """Whether `/ready` says no while the sink fails."""

    def __post_init__(self) -> None:
        """Validate."""
        if self.name is not None and not (self.name and type(self.name) is str):
            raise ConfigurationError(f"`name` must be a text, got {self.name!r}.")
        _require_number("sample", self.sample, 0, 1)
        _require_number("max_wait_s", self.max_wait_s, 0)
        _require_number("write_timeout_s", self.write_timeout_s, 0.001)
        for name in ("max_queue", "max_queue_bytes", "batch_size", "max_tries"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigurationError(
                    f"`{name}` must be a whole number of at least 1, got {value!r}."
                )
        if not callable(self.redact) and (
            isinstance(self.redact, str) or not all(map(is_path, self.redact))
        ):
            raise ConfigurationError(
                "`redact` must be a function of a record or a list of paths such as"
                f" ['user.email'], got {self.redact!r}."
            )

    @property
    def reads_payloads(self) -> bool:
        """Whether the records take work that the event loop should not do."""
        return self.keep_payloads or callable(self.redact)


@runtime_checkable
class Sink(Protocol):
    """
    Takes records. Its methods are awaited on the server's event loop, one call at a time.

    A sink belongs to one server. What it raises, and how long it takes, reaches neither a request
    nor another sink.
    """

    options: SinkOptions
    """What it gets."""

    async def open(self) -> None:
        """Prepare to write; tried until it succeeds, and again after `close`."""

    async def write(self, records: Sequence[InferenceRecord]) -> Any:
        """Take in all of the records, or raise; they are then given again, `max_tries` times."""

    async def close(self) -> None:
        """Let go of what `open` took; called at the end, also of a sink that never opened."""


def require_sink(sink: object) -> Sink:
    """
    Refuse what is no sink.

    Raises:
        ConfigurationError: If it is none.
    """
    methods = [getattr(sink, name, None) for name in _METHODS]
    if (
        isinstance(sink, type)
        or not isinstance(sink, Sink)
        or type(sink.options) is not SinkOptions
        or not all(map(inspect.iscoroutinefunction, methods))
    ):
        raise ConfigurationError(
            f"A sink must be one such as `CallbackSink(function)`, got {sink!r}. One of your own"
            " has `options = SinkOptions()` and the methods `async def open`, `write` and `close`."
        )
    return sink


def is_sampled(request_id: str, share: float) -> bool:
    """
    Say whether a request is among those that are taken; always the same of one id. Pure.

    Args:
        request_id: Its id.
        share: Which share is taken; whoever is in a smaller one is in every larger one.
    """
    if share >= 1.0:
        return True
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2.0**64


def _require_number(name: str, value: Any, least: float, most: float = math.inf) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (math.isfinite(value) and least <= value <= most):
        bounds = f"of at least {least:g}" if most == math.inf else f"from {least} to {most}"
        raise ConfigurationError(f"`{name}` must be a number {bounds}, got {value!r}.")
