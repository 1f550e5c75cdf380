"""Who is told of each request that has its answer, beside the access log and the metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlserve.observability.access_log import InferenceLine
from mlserve.observability.loggers import get_logger

__all__ = ["Ended", "Listener", "Listeners"]

logger = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Ended:
    """A request that has its answer."""

    line: InferenceLine
    """The facts of the access log."""
    annotations: Mapping[str, Any]
    """What hooks have noted."""
    at: float
    """When it ended, in Unix seconds."""
    is_stream: bool
    """Whether it was asked for as a stream."""
    key: str | None = None
    """The name of the API key that it came with."""
    request: bytes | None = None
    """Its body, if a listener keeps payloads and it is JSON."""
    response: bytes | None = None
    """The body of its answer, likewise; of a stream all events."""


class Listener(Protocol):
    """Is told of requests. On the event loop, so that it must not wait for anything."""

    @property
    def keeps_payloads(self) -> bool:
        """Whether it wants the bodies."""

    def note(self, ended: Ended) -> None:
        """Take in a request that has its answer."""


class Listeners:
    """Those who are told of the requests of one model."""

    def __init__(self) -> None:
        self._all: list[Listener] = []
        self.keeps_payloads = False
        """Whether one of them wants the bodies."""

    def add(self, listener: Listener) -> None:
        """Tell somebody from now on."""
        self._all.append(listener)
        self.keeps_payloads = self.keeps_payloads or listener.keeps_payloads

    def also(self, listener: Listener) -> "Listeners":
        """Give those who are told, and somebody besides."""
        more = Listeners()
        for each in (*self._all, listener):
            more.add(each)
        return more

    def tell(self, ended: Ended) -> None:
        """Tell all of them; what one raises reaches nobody."""
        for listener in self._all:
            try:
                listener.note(ended)
            except Exception:  # the answer is sent already
                logger.exception("listener.failed")

    def __bool__(self) -> bool:
        return bool(self._all)

    def __repr__(self) -> str:
        return f"<Listeners {self._all!r}>"
