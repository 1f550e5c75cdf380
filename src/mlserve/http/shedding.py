"""
Refusals of requests whose head came before, by a model that has no room: as cheap as may be.

Under heavy overload there are many times as many refusals as answers, which they hold up. What is
sent, logged and counted is what every other refusal is; nothing is made that it does not need.
"""

import time
from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mlserve.errors import CapacityError
from mlserve.http.connection import Connection
from mlserve.http.endings import Endings
from mlserve.http.errors import refusal_body, whole_seconds
from mlserve.http.exchange import NO_TIMES, NOTHING, new_request_id
from mlserve.http.route import ModelRoute
from mlserve.observability.access_log import InferenceLine, Noted, inference_line
from mlserve.observability.metrics import ModelMetrics, model_metrics

__all__ = ["Shedding"]


class Shedding:
    """
    Refuses requests for the models of one application. Event loop only.

    Args:
        endings: Ends them, once they are answered.
    """

    def __init__(self, endings: Endings) -> None:
        self._endings = endings
        self._blanks: dict[tuple[str, str, str], InferenceLine] = {}
        self._defaults: Sequence[tuple[bytes, bytes]] = ()
        self._begin = b""

    def shed(self, route: ModelRoute, connection: Connection, error: CapacityError) -> None:
        """
        Answer a request whose body is here and whose head named no id.

        Args:
            route: The route that it is for; nothing is added to its answers.
            connection: Where it came from, and where the answer goes.
            error: Why it is refused.
        """
        started = time.perf_counter()
        request_id = new_request_id()
        body = refusal_body(error, request_id)
        retry_after_s = error.retry_after_s
        retry = (
            b"" if retry_after_s is None else b"retry-after: %d\r\n" % whole_seconds(retry_after_s)
        )
        connection.send_whole(
            b"%b%bcontent-length: %d\r\ncontent-type: application/json\r\n%b: %b\r\n\r\n%b"
            % (
                self._beginning(connection, error.status),
                retry,
                len(body),
                route.id_header,
                request_id.encode(),
                body,
            )
        )
        blank = self._blanks.get((route.model, route.version, error.code))
        line: InferenceLine = {
            **(blank or self._blank(route, error)),
            "request_id": request_id,
            "bytes_out": len(body),
            "total_ms": int((time.perf_counter() - started) * 1e6 + 0.5) / 1e3,
        }
        self._endings.add(_Shed(line, model_metrics(route.model, route.version), route))

    def _beginning(self, connection: Connection, status: int) -> bytes:
        """Give the status line and the headers that every answer of the server has."""
        defaults = connection.server_state.default_headers
        if defaults is not self._defaults:  # they change once a second
            self._defaults = defaults
            self._begin = b"".join(b"%b: %b\r\n" % header for header in defaults)
        return STATUS_LINE[status] + self._begin

    def _blank(self, route: ModelRoute, error: CapacityError) -> InferenceLine:
        """Give the line of a refusal, but for what each has of its own."""
        line = inference_line(
            request_id="",
            model=route.model,
            version=route.version,
            status=error.status,
            code=error.code,
            total_s=0.0,
            times=NO_TIMES,
            annotations=NOTHING,
        )
        self._blanks[route.model, route.version, error.code] = line
        return line

    def __repr__(self) -> str:
        return f"<Shedding of {len(self._blanks)} kinds>"


class _Shed:
    """A request that was refused."""

    __slots__ = ("_line", "_metrics", "_route")

    def __init__(self, line: InferenceLine, metrics: ModelMetrics, route: ModelRoute) -> None:
        self._line = line
        self._metrics = metrics
        self._route = route

    @property
    def request_id(self) -> str:
        return self._line["request_id"]

    def settle(self) -> Sequence[Noted]:
        self._metrics.note_request(self._line, NOTHING)
        return ((self._line, NOTHING),) if self._route.settings.access_log else ()
