"""
The short way of a prediction under `mlserve run`: from the connection to the queue and back.

The connection says when a request is here whole, and the model's answer comes by a call. So where
nothing on the way has to be waited for, a request needs no task, no coroutine and no message: it
is one object, which reads what `PredictEndpoint` reads and answers what that would. Whatever is
unusual goes the ordinary way: other servers, uploads, bodies over 64 KiB or of unknown length,
caches, guards that wait, middleware and dependencies of the user. Runs on the event loop.
"""

from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from mlserve.errors import AbandonedError, BodyTimeoutError
from mlserve.handler import NO_HEADERS, Call
from mlserve.http.body import parse_json, require_json
from mlserve.http.connection import Connection
from mlserve.http.endings import Endings
from mlserve.http.errors import raw_answer_of
from mlserve.http.exchange import EXCHANGE, Exchange
from mlserve.http.predict import binary_response, forwarded, wishes_of
from mlserve.http.route import ModelRoute
from mlserve.job import Job
from mlserve.model import Model
from mlserve.observability.loggers import get_logger
from mlserve.payloads import Binary

__all__ = ["DirectPrediction", "prediction_of"]

logger = get_logger(__name__)

_MAX_BODY_BYTES = 65_536  # uvicorn stops reading where more waits, until somebody takes it
_UNUSUAL = frozenset({b"x-request-timeout", b"x-request-priority", b"content-encoding"})
_JSON = b"application/json"
_JSON_HEADER = (b"content-type", _JSON)


def prediction_of(
    route: ModelRoute, scope: Scope, connection: Connection, endings: Endings
) -> "DirectPrediction | None":
    """Begin a prediction, if a request can go the short way by what its head says."""
    model = route.predicts
    if model is None or model.engine.answers is not None:
        return None
    head = dict(reversed(scope["headers"]))  # of several of a name the first one counts
    length = head.get(b"content-length", b"")
    if not length.isdigit() or int(length[:20]) > min(_MAX_BODY_BYTES, route.max_body_bytes):
        return None
    if b"expect" in head or len(route.quick_guards) < len(route.guards):
        return None
    return DirectPrediction(route, model, scope, connection, endings, head)


class DirectPrediction:
    """
    One request, from its head to its answer; the sink of its job.

    Args:
        route: The route that it is for.
        model: The model that answers it.
        scope: Its ASGI scope.
        connection: Where it came from, and where the answer goes.
        endings: Ends it, once it is answered.
        headers: Its headers; of several of a name the first one.
        wishes: Its whole time in seconds and its priority, if they are known: then its head has
            been checked as well.
    """

    __slots__ = (
        "_connection",
        "_endings",
        "_exchange",
        "_is_over",
        "_job",
        "_model",
        "headers",
        "is_checked",
        "route",
        "scope",
        "wishes",
    )

    def __init__(
        self,
        route: ModelRoute,
        model: Model,
        scope: Scope,
        connection: Connection,
        endings: Endings,
        headers: dict[bytes, bytes],
        wishes: tuple[float, int] | None = None,
    ) -> None:
        self.route = route
        self._model = model
        self.scope = scope
        self._connection = connection
        self._endings = endings
        self.headers = headers
        self._exchange: Exchange = route.open(scope, None)
        self.is_checked = wishes is not None
        self.wishes = wishes or (model.engine.spec.limits.timeout_s, 0)
        self._job: Job | None = None
        self._is_over = False

    def begin(self) -> None:
        """Look at what the head says; what may not be, or finds no room, is refused now."""
        headers, model = self.headers, self._model
        guards = self.route.quick_guards  # all that there are
        is_usual = self.is_checked or (
            headers.get(b"content-type") == _JSON and _UNUSUAL.isdisjoint(headers)
        )
        if is_usual and not guards:
            return  # for which the connection has looked for room already
        try:
            for guard in guards:
                guard.let_pass_at_once(self.scope)
            if not is_usual:
                self.wishes = wishes_of(Headers(scope=self.scope), model)
            if guards and model.engine.is_crowded:
                model.engine.require_room(*self.wishes, self._exchange.key)
            if not is_usual:
                require_json(Headers(scope=self.scope))
        except Exception as exc:  # noqa: BLE001 - whatever it is, the client gets our body
            self.fail(exc)

    def take(self, body: bytes) -> None:
        """Go on with the whole body."""
        engine, exchange = self._model.engine, self._exchange
        exchange.bytes_in = len(body)
        # A turn of the loop that takes in many requests is long; the model must not stand idle.
        engine.placement.catch_up()
        try:
            job = self._made(body)
            exchange.job = self._job = job
            engine.begin(job, self)
        except Exception as exc:  # noqa: BLE001 - as above
            self.fail(exc)

    def leave(self) -> None:
        """End: the client has left."""
        if self._job is None:
            self._exchange.bytes_in = len(self._connection.cycle.body)
            self.fail(AbandonedError())
        else:
            self._model.engine.abandon(self._job)

    def expire(self) -> None:
        """End: the body did not arrive in time."""
        self._exchange.bytes_in = len(self._connection.cycle.body)
        self.fail(BodyTimeoutError(self.route.settings.body_timeout_s))

    def result(self, value: Any) -> None:
        """Answer with what the model has made."""
        if self._is_over:
            return
        try:
            if isinstance(value, Binary):
                response = binary_response(value)
                headers, body = response.raw_headers, value.content
            else:
                body = self._model.engine.spec.contract.response.encode(value)
                headers = [(b"content-length", b"%d" % len(body)), _JSON_HEADER]
        except Exception as exc:  # noqa: BLE001 - as above
            self.fail(exc)
        else:
            self._answer(200, headers, body)

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        if self._is_over:
            return
        if not isinstance(error, Exception):
            error = RuntimeError(f"{type(error).__name__} was raised.")
        self._answer(*raw_answer_of(self.scope, error))

    def _made(self, body: bytes) -> Job:
        """Read and validate a request and make the job of it, as `new_job` does."""
        exchange, model = self._exchange, self._model
        settings = self.route.settings
        spec = model.engine.spec
        (budget_s, priority), passed_on = self.wishes, NO_HEADERS
        if settings.forward_headers:
            passed_on = forwarded(Headers(scope=self.scope), settings)
        if exchange.keeps_payloads:
            exchange.body = body
        payload = parse_json(spec.contract.request, body)
        clock = model.engine.clock
        call = Call(exchange.request_id, timeout_s=budget_s, headers=passed_on, clock=clock)
        return Job(payload, call, timeout_s=budget_s, priority=priority, tenant=exchange.key)

    def _answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send the answer, and let go of all that belongs to the request."""
        self._is_over = True
        job, exchange = self._job, self._exchange
        if job is not None and job.lane is not None:
            self._model.engine.leave(job)
        try:
            headers = exchange.respond(status, headers, body)
            self._connection.answer(status, headers, body)
        except Exception:  # others of the batch wait for their answers behind this one
            logger.exception("request.answer.failed", extra={"request_id": exchange.request_id})
            self._connection.transport.abort()
        self._endings.add(exchange)
        self.scope.pop(EXCHANGE, None)

    def __repr__(self) -> str:
        return f"<DirectPrediction {self._exchange.request_id}>"
