"""Feature flags as FastAPI dependencies."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mlserve.access.flags import Flags
from mlserve.http.guards.caller import By, caller_of, require_by
from mlserve.http.guards.own import OwnGuard
from mlserve.http.guards.tree import calls_of_routes
from mlserve.processes.boot import IN_REPLICA

__all__ = ["FeatureFlag", "feature_flag", "require_flag", "require_known_flags"]


def feature_flag(name: str, *, by: By = "key") -> Callable[[Request], Awaitable[bool]]:
    """
    Make a dependency that says whether a flag is on for who asks.

    Args:
        name: The flag's name, one of those in the server's settings.
        by: By what callers are told apart where a flag is on for a share of them: `"key"`, the API
            key's name, else the address; `"address"`; or a function of the request.

    Raises:
        ConfigurationError: If `by` is wrong; when the application is built or starts, if there is
            no such flag.

    Example:
        >>> @app.get("/greeting")
        ... async def greeting(beta: Annotated[bool, Depends(feature_flag("beta"))]) -> str:
        ...     return "new" if beta else "old"
    """
    return FeatureFlag(name, by, refuses=False)


def require_flag(name: str, *, by: By = "key") -> Callable[[Request], Awaitable[bool]]:
    """
    Make a dependency that answers 404, as if there were no such route, where a flag is off.

    Args:
        name: The flag's name, one of those in the server's settings.
        by: By what callers are told apart, as of `feature_flag`.

    Raises:
        ConfigurationError: As of `feature_flag`.

    Example:
        >>> server.add("double", Double, dependencies=[Depends(require_flag("beta"))])
    """
    return FeatureFlag(name, by, refuses=True)


class FeatureFlag(OwnGuard):
    """
    Asks one flag of the application's `Flags`. Event loop only.

    Args:
        name: The flag's name.
        by: By what callers are told apart.
        refuses: Whether a request is refused where it is off.
    """

    def __init__(self, name: str, by: By, *, refuses: bool) -> None:
        require_by(by)
        self.name = name
        self._by = by
        self._refuses = refuses

    async def __call__(self, request: Request) -> bool:
        """Say whether the flag is on."""
        flags: Flags = request.app.state.flags
        is_on = flags.is_on(self.name, caller_of(request, self._by))
        if self._refuses and not is_on:
            raise HTTPException(404)
        return is_on

    async def let_pass(self, request: Request) -> None:
        """Let a request pass unless the flag is off and that refuses it."""
        await self(request)

    def __repr__(self) -> str:
        return f"<FeatureFlag {self.name!r}>"


def require_known_flags(app: FastAPI, flags: Flags) -> None:
    """
    Refuse an application that asks for flags that there are not.

    Raises:
        ConfigurationError: If a route does.
    """
    if IN_REPLICA.is_set():  # the settings that name them stay in the server's process
        return
    for call in calls_of_routes(app.router.routes):
        if isinstance(call, FeatureFlag):
            flags.require(call.name)
