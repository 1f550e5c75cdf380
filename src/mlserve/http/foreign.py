"""
Middleware that hides from us, under a server that is not ours, whether a client still waits.

Pure ASGI middleware and Starlette's `BaseHTTPMiddleware` pass a client's leaving on. What hides it
is middleware that has read the body and then gives a `receive` of its own, which says the same
body again each time, waits for ever or breaks. A built application keeps the server's own `receive`
and asks that. Installed in an application of the user, we cannot; that a middleware hides can be
read in its code only, so nothing tells beforehand, and it shows in the first long request.
"""

from typing import Any
from weakref import WeakSet

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from mlserve.observability.loggers import get_logger

__all__ = ["RECEIVE", "suspects_of", "warn_of_hiding"]

logger = get_logger(__name__)

RECEIVE = "mlserve.receive"
"""Where the scope holds the server's own `receive`, in a built application with middleware."""

_TRUSTED = ("mlserve.", "starlette.", "fastapi.")
_warned: WeakSet[Any] = WeakSet()


def suspects_of(app: Any) -> list[str]:
    """
    Name the middleware of an application that may hide a client's leaving, outermost first.

    That is every one of the user's: which of them does it can be read in their code only.

    Args:
        app: A Starlette application; of any other nothing is known.
    """
    entries = [
        entry for entry in getattr(app, "user_middleware", ()) if isinstance(entry, Middleware)
    ]
    return [name for entry in entries if (name := _suspect(entry)) is not None]


def warn_of_hiding(app: Any) -> None:
    """Warn, once per application, that its middleware hides whether clients still wait."""
    if app is not None and app in _warned:
        return
    if app is not None:
        _warned.add(app)
    names = ", ".join(f"`{name}`" for name in suspects_of(app)) or "unknown"
    logger.warning(
        "A middleware hides when clients leave, so that nobody stops work for them: %s. After the"
        " body was read, its `receive` must wait for the server's own `receive`. Under `mlserve"
        " run` leaving is noticed all the same.",
        names,
        extra={"middleware": names},
    )


def _suspect(entry: Middleware) -> str | None:
    factory: Any = entry.cls
    if factory is BaseHTTPMiddleware:  # `@app.middleware("http")`
        factory = entry.kwargs.get("dispatch", factory)
    module, name = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", None)
    if module.startswith(_TRUSTED):
        return None
    return f"{module}.{name}" if name is not None else type(factory).__qualname__
