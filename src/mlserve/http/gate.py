"""
Refusing a request before anything is spent on it.

What is refused inside the application takes a task of its own, and under heavy overload there are
many times as many refusals as answers, which they hold up. So `mlserve run` asks the model for
room as soon as the head of a request is there. Only where nobody else looks on: on the routes that
are reached past FastAPI's stack. Everywhere else, and under other servers, the route itself
refuses.
"""

from typing import Any

from starlette.types import Message, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mlserve.errors import CapacityError
from mlserve.http.errors import error_response
from mlserve.http.lean import ServingApp

__all__ = ["Gate"]


class Gate:
    """
    Stands before the models of an application. Event loop only.

    Args:
        app: The application; before any but our own there is no gate.
    """

    def __init__(self, app: Any) -> None:
        self._app = app if isinstance(app, ServingApp) else None

    def refusal(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> bytes | None:
        """
        Give the whole answer to a request that its model has no room for; it is logged then.

        Args:
            scope: The request's scope; its body has not been read.
            headers: What every answer of this connection has.

        Returns:
            The bytes of the answer; `None` = the application should answer.
        """
        route = self._app.lean_route(scope) if self._app is not None else None
        if route is None or route.guards:  # who may not ask is told that, and nothing else
            return None
        try:
            route.require_room(scope)
        except CapacityError as exc:
            exchange = route.open(scope, _nowhere)
            response = error_response(exc, exchange.request_id)
            lines = [*headers, *response.raw_headers, exchange.id_header, *exchange.headers]
            head = b"".join(b"%s: %s\r\n" % line for line in lines)
            exchange.close(response.status_code, exc.code, len(response.body))
            return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)
        return None


async def _nowhere(message: Message) -> Any:
    """Never called: the answer is written by the connection."""
