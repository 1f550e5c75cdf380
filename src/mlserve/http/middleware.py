"""What stands around every route of a built application. Pure ASGI."""

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlserve.http.body import BodyLimit
from mlserve.http.errors import handle_error
from mlserve.http.exchange import headers_of, request_id_of
from mlserve.http.shutdown import answer_cancelled

__all__ = ["ServingMiddleware"]


class ServingMiddleware:
    """
    Gives every request an id and a bounded body, and every unknown exception our error body.

    Starlette's own handling of unknown exceptions raises them again after the answer, and the
    server then closes the connection without notice; here the connection stays usable.

    Args:
        app: What it stands around.
        request_id_header: The header that carries the request id.
        max_body_bytes: How large a body may be on routes that belong to no model.
    """

    def __init__(self, app: ASGIApp, *, request_id_header: str, max_body_bytes: int) -> None:
        self._app = app
        self._header = request_id_header.lower()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = (self._header.encode(), request_id_of(scope, self._header).encode())
        more = headers_of(scope)  # what dependencies put there later
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = list(message.get("headers", ()))
                wanted = [item for item in more if item not in headers]
                if not any(name == header[0] for name, _ in headers):
                    wanted.append(header)
                if wanted:
                    message = {**message, "headers": [*headers, *wanted]}
            await send(message)

        limited = BodyLimit(scope, receive, self._max_body_bytes)
        try:
            await self._app(scope, limited, send_with_id)
        except Exception as exc:
            if has_started or _is_theirs(scope):
                raise  # once it has started, the connection must break: half an answer is sent
            response = await handle_error(Request(scope, limited), exc)
            await response(scope, limited, send_with_id)
        except asyncio.CancelledError as exc:
            if not has_started:
                await answer_cancelled(Request(scope, limited), send_with_id, exc)
            raise
        finally:
            BodyLimit.forget(scope)


def _is_theirs(scope: Scope) -> bool:
    """Whether the application has a handler of its own for unknown exceptions."""
    handlers = getattr(scope.get("app"), "exception_handlers", {})
    return Exception in handlers or 500 in handlers
