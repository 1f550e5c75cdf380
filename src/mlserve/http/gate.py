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
from mlserve.http.direct import DirectPrediction, prediction_of
from mlserve.http.endings import Endings
from mlserve.http.errors import raw_answer_of
from mlserve.http.exchange import EXCHANGE, REQUEST_ID, new_request_id
from mlserve.http.heads import HeadKey, KnownHead, KnownHeads
from mlserve.http.lean import ServingApp
from mlserve.http.route import ModelRoute
from mlserve.http.shedding import Shedding

__all__ = ["Gate"]


class Gate:
    """
    Stands before the models of an application. Event loop only.

    Args:
        app: The application; before any but our own there is no gate.
    """

    def __init__(self, app: Any) -> None:
        self._app = app if isinstance(app, ServingApp) else None
        self._heads = KnownHeads()
        self._endings = Endings()
        self._shedding = Shedding(self._endings)
        self.find = self._heads.find
        """Looks whether a whole request has a head that came before."""

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
        # Where there are guards, who may not ask is told that, and nothing else.
        if route is None or (not route.guards and self._is_refused(route, scope, connection)):
            return None
        prediction = prediction_of(route, scope, connection, self._endings)
        if prediction is not None:
            prediction.begin()
        return prediction

    def sheds(self, known: KnownHead, connection: Connection) -> bool:
        """Refuse a request whose head came before, if its model has no room; say whether."""
        route = known.route
        model = route.predicts
        if model is None or route.guards or not (model.engine.is_crowded and route.is_lean):
            return False
        error = model.engine.refusal(*known.wishes)
        if error is None:
            return False
        if route.is_marked:
            self._refuse(route, {**known.scope}, connection, error)
        else:
            self._shedding.shed(route, connection, error)
        return True

    def repeat(
        self, known: KnownHead, scope: Scope, connection: Connection
    ) -> DirectPrediction | None:
        """Begin to answer a request whose head came before, as `enter` does."""
        scope[REQUEST_ID] = new_request_id()  # a head that is known names none
        route = known.route
        model = route.predicts
        if model is None or not route.is_lean:
            return None
        prediction = DirectPrediction(
            route, model, scope, connection, self._endings, known.headers, known.wishes
        )
        if route.guards:
            prediction.begin()
        return prediction

    def learn(self, data: bytes, direct: DirectPrediction) -> tuple[HeadKey, KnownHead] | None:
        """Note the head of a request that goes the short way, and came in one piece."""
        return self._heads.learn(data, direct.route, direct.scope, direct.headers, direct.wishes)

    def _is_refused(self, route: ModelRoute, scope: Scope, connection: Connection) -> bool:
        """Refuse a request that its model has no room for."""
        try:
            route.require_room(scope)
        except CapacityError as exc:
            self._refuse(route, scope, connection, exc)
            return True
        return False

    def _refuse(
        self, route: ModelRoute, scope: Scope, connection: Connection, error: CapacityError
    ) -> None:
        exchange = route.open(scope, None)
        status, headers, body = raw_answer_of(scope, error)
        connection.answer(status, exchange.respond(status, headers, body), body)
        self._endings.add(exchange)
        scope.pop(EXCHANGE, None)
