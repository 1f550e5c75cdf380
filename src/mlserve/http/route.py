"""
The route class of all model routes: an ordinary `APIRoute` in router and OpenAPI.

FastAPI documents the endpoint's signature and solves the user's dependencies; the body is read
and validated by mlserve itself, after them. Errors become mlserve's body on these routes only,
whatever handlers the application has.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, get_request_handler
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mlserve.errors import MLServeError
from mlserve.http.body import BodyLimit
from mlserve.http.errors import ERROR_SHAPE, ErrorShape, handle_error
from mlserve.http.exchange import Exchange
from mlserve.http.guards.own import OwnGuard, QuickGuard
from mlserve.http.shutdown import MODEL, answer_cancelled
from mlserve.model import Model
from mlserve.observability.listeners import Listeners
from mlserve.settings import ServerSettings

__all__ = ["NO_MODEL", "Answer", "ModelRoute", "Opened", "ServerRoute"]

Answer = Callable[[Request], Awaitable[Response]]
"""What runs once the user's dependencies are solved."""

Opened = Callable[[Exchange, Scope], None]
"""What is told of each exchange when it begins: it may say whose it is, and add headers."""

NO_MODEL = "-"
"""What stands in the log in the place of a model that a request has not named."""

_HANDLERS: dict[Any, Any] = {
    Exception: handle_error,
    HTTPException: handle_error,
    MLServeError: handle_error,
    RequestValidationError: handle_error,
}


class ServerRoute(APIRoute):
    """A route that belongs to no model, such as the list of models."""

    @property
    def is_lean(self) -> bool:
        """Whether FastAPI has nothing to do for it: no dependency, no parameter in its path."""
        return not self.dependant.dependencies and not self.param_convertors

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in (self.methods or ()):
            response = await handle_error(Request(scope, receive), self._wrong_method())
            await response(scope, receive, send)
            return
        _keep_our_errors(scope)
        await super().handle(scope, receive, send)

    def _wrong_method(self) -> HTTPException:
        return HTTPException(405, headers={"Allow": ", ".join(sorted(self.methods or ()))})


def _always_room(scope: Scope) -> None:
    """What belongs to no model is never crowded."""


class ModelRoute(APIRoute):
    """
    A route of one model.

    Args:
        path: The full path.
        endpoint: Never called: its signature is what OpenAPI shows.
        answer: Called with the request instead.
        settings: The server's settings.
        model: The model's name, for the log.
        version: The model's version, for the log.
        max_body_bytes: How large a body may be.
        require_room: Raises a `CapacityError` for a request whose head is known and nothing else,
            if the model has no room for it.
        listeners: Who is told of its requests.
        opened: Called with each exchange when it begins.
        predicts: The model whose predictions in JSON it answers, if that is all it does.
        shape: What its protocol says of errors; `None` = what mlserve says.
        options: What FastAPI's route takes.
    """

    def __init__(  # noqa: PLR0913 - one keyword per aspect of a route
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        answer: Answer,
        settings: ServerSettings,
        model: str,
        version: str,
        max_body_bytes: int,
        require_room: Callable[[Scope], None] = _always_room,
        listeners: Listeners | None = None,
        opened: Sequence[Opened] = (),
        predicts: Model | None = None,
        shape: ErrorShape | None = None,
        **options: Any,
    ) -> None:
        self._answer = answer
        self.settings = settings
        self.predicts = predicts
        self.model = model
        self.version = version
        self.id_header = settings.request_id_header.lower().encode()
        """The name of the header that carries the request id."""
        self.max_body_bytes = max_body_bytes
        self.require_room = require_room
        self._listeners = listeners
        self._opened = opened
        self._shape = shape
        super().__init__(path, endpoint, **options)
        calls: dict[Any, None] = dict.fromkeys(d.call for d in self.dependant.dependencies)
        self.guards = [call for call in calls if isinstance(call, OwnGuard)]
        """What of its dependencies it calls itself where FastAPI has nothing else to do."""
        self.quick_guards = [guard for guard in self.guards if isinstance(guard, QuickGuard)]
        """Those of them that never have to wait."""
        self._has_theirs = len(self.guards) < len(calls)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give FastAPI's handler of the user's dependencies around our own endpoint."""
        dependant = replace(
            self.dependant,
            call=self._answer,
            path_params=[],
            body_params=[],
            query_params=[],
            request_param_name="request",
        )
        return get_request_handler(
            dependant, dependency_overrides_provider=self.dependency_overrides_provider
        )

    @property
    def is_lean(self) -> bool:
        """Whether FastAPI has nothing to do for it: no dependency of the user, no parameter."""
        return not (self._has_theirs or self._is_overridden or self.param_convertors)

    @property
    def _is_overridden(self) -> bool:
        """Whether the application may have put others in the places of its guards, as tests do."""
        provider = self.dependency_overrides_provider
        return bool(self.guards and getattr(provider, "dependency_overrides", None))

    @property
    def is_marked(self) -> bool:
        """Whether something is added to each answer or its line in the log."""
        return bool(self._opened)

    def open(self, scope: Scope, send: Send | None) -> Exchange:
        """Begin the exchange of a request; `None` = the answer is sent in one piece."""
        exchange = Exchange(scope, send, self.settings, self.model, self.version, self._listeners)
        for opened in self._opened:
            opened(exchange, scope)
        return exchange

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and log it."""
        exchange = self.open(scope, send)
        scope[MODEL] = None if self.model == NO_MODEL else self.model
        if self._shape is not None:
            scope[ERROR_SHAPE] = self._shape
        limited = BodyLimit.of(scope, receive, self.max_body_bytes)
        try:
            is_theirs = self._has_theirs or self._is_overridden
            if is_theirs and scope["method"] in (self.methods or ()):
                await self._answer_behind(scope, limited, exchange.send)
            else:
                await self._answer_directly(Request(scope, limited), exchange.send)
        finally:
            exchange.bytes_in = BodyLimit.n_received(scope)
            # The server keeps the scope of a connection's last request, however long it is idle.
            await exchange.end(scope)
            BodyLimit.forget(scope)

    async def _answer_behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request behind the dependencies of the user."""
        has_started = False

        async def noting(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        _keep_our_errors(scope)
        try:
            await self.app(scope, receive, noting)
        except asyncio.CancelledError as exc:
            if not has_started:
                await answer_cancelled(Request(scope, receive), send, exc, scope[MODEL])
            raise

    async def _answer_directly(self, request: Request, send: Send) -> None:
        """Answer a request that no dependency of the user looks at: FastAPI has nothing to do."""
        try:
            if self.methods and request.method not in self.methods:
                raise HTTPException(405, headers={"Allow": ", ".join(sorted(self.methods))})
            for guard in self.guards:
                await guard.let_pass(request)
            response = await self._answer(request)
        except asyncio.CancelledError as exc:
            await answer_cancelled(request, send, exc, request.scope[MODEL])
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it is, the client gets our body
            response = await handle_error(request, exc)
        await response(request.scope, request.receive, send)


def _keep_our_errors(scope: Scope) -> None:
    """Have exceptions of this request answered with our body, whatever the application does."""
    # Starlette looks here for what answers an exception; only this scope is changed. The
    # application's handlers of its own exceptions stay, as its dependencies may raise them.
    theirs, _ = scope.get("starlette.exception_handlers", ({}, {}))
    scope["starlette.exception_handlers"] = ({**theirs, **_HANDLERS}, {})
