"""
What becomes of a request under `mlserve run` as soon as its head is there.

What is refused inside the application takes a task of its own, and under heavy overload there are
many times as many refusals as answers, which they hold up. So the model is asked for room before,
and plain predictions are answered without a task as well. Only where nobody else looks on: on the
routes that are reached past FastAPI's stack. Everywhere else, and under other servers, the route
itself refuses and answers.
"""

from typing import Any

from starlette.types import Scope

from mlserve.errors import CapacityError
from mlserve.http.connection import Connection
from mlserve.http.direct import DirectPrediction, nowhere, prediction_of
from mlserve.http.errors import answer_of
from mlserve.http.exchange import EXCHANGE
from mlserve.http.lean import ServingApp
from mlserve.http.route import ModelRoute

__all__ = ["Gate"]


class Gate:
    """
    Stands before the models of an application. Event loop only.

    Args:
        app: The application; before any but our own there is no gate.
    """

    def __init__(self, app: Any) -> None:
        self._app = app if isinstance(app, ServingApp) else None

    def enter(self, scope: Scope, connection: Connection) -> DirectPrediction | None:
        """
        Answer a request, or begin to; a refusal is sent and logged at once.

        Args:
            scope: The request's scope; its body has not been read.
            connection: Where it came from.

        Returns:
            What goes on once the body is here; `None` = the application answers, unless the
            connection has the answer already.
        """
        route = self._app.lean_route(scope) if self._app is not None else None
        if route is None:
            return None
        if not route.guards:  # else who may not ask is told that, and nothing else
            try:
                route.require_room(scope)
            except CapacityError as exc:
                _refuse(route, scope, connection, exc)
                return None
        prediction = prediction_of(route, scope, connection)
        if prediction is not None:
            prediction.begin()
        return prediction


def _refuse(route: ModelRoute, scope: Scope, connection: Connection, error: CapacityError) -> None:
    exchange = route.open(scope, nowhere)
    response = answer_of(scope, error)
    body = bytes(response.body)
    connection.answer(
        response.status_code,
        exchange.respond(response.status_code, response.raw_headers, body),
        body,
    )
    exchange.finish()
    scope.pop(EXCHANGE, None)
