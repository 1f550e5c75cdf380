"""API keys as a FastAPI dependency."""

from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from mlserve.access.keys import LONGEST, SCOPES, Key, find_key, key_source
from mlserve.errors import ConfigurationError
from mlserve.http.exchange import EXCHANGE
from mlserve.http.guards.caller import CALLER
from mlserve.http.guards.own import QuickGuard
from mlserve.processes.boot import IN_REPLICA

__all__ = ["ApiKeys", "api_keys"]

_name_of_header = itemgetter(0)
_BEARER = HTTPBearer(auto_error=False, description="An API key as `Authorization: Bearer …`.")
_HEADER = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="An API key in a header of its own."
)
_HEADER_NAME = b"x-api-key"
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_MISSING = "Send an API key, as `Authorization: Bearer …` or as `X-API-Key`."
_WRONG = "The API key is wrong."


def api_keys(
    source: str | Path | Sequence[str] | None = None,
    scope: Literal["infer", "admin"] = "infer",
) -> Callable[..., Awaitable[str]]:
    """
    Make a dependency that lets a request pass only with an API key, and gives the key's name.

    Clients send it as `Authorization: Bearer …` or `X-API-Key`; where both are there, the latter
    counts. Without a good key the answer is 401 `unauthorized`, with one of other scopes 403
    `forbidden`. Keys are kept as SHA-256 digests and compared in constant time.

    Args:
        source: Where the keys stand: the path of a file with one entry a line, which is read again
            when it changes; a list of entries; `None` = the variable `MLSERVE_API_KEYS`, with
            commas in between. An entry is `key`, `name=key` or `name:scope+scope=key`; instead of
            a key may stand `sha256:` and its digest, as `mlserve keys new` prints it.
        scope: What a key must be for: `infer`, which keys are for that name no scope, or `admin`.

    Raises:
        ConfigurationError: If there is no key, none of this scope, or one is malformed or shorter
            than 16 characters.

    Example:
        >>> server = ModelServer(dependencies=[Depends(api_keys("keys.txt"))])
    """
    return ApiKeys(source, scope)


class ApiKeys(QuickGuard):
    """
    Looks for one of several keys in a request's headers. Event loop only.

    Args:
        source: Where the keys stand.
        scope: What a key must be for.
    """

    def __init__(self, source: str | Path | Sequence[str] | None, scope: str) -> None:
        if scope not in SCOPES:
            raise ConfigurationError(f"`scope` must be one of {', '.join(SCOPES)}, got {scope!r}.")
        self._scope = scope
        # The process of a replica imports the module of the server, and is given no keys.
        self._keys = _no_keys if IN_REPLICA.is_set() else key_source(source)
        if not IN_REPLICA.is_set() and not any(scope in key.scopes for key in self._keys()):
            raise ConfigurationError(
                f"No API key has the scope {scope!r}. `mlserve keys new --scope {scope}` makes one."
            )

    async def __call__(
        self,
        request: Request,
        bearer: Annotated[Any, Security(_BEARER)],
        header: Annotated[Any, Security(_HEADER)],
    ) -> str:
        """Give the name of the key that a request came with; the schemes are for OpenAPI."""
        return self.let_pass_at_once(request.scope)

    def let_pass_at_once(self, scope: Scope) -> str:
        """Give the name of the key that a request came with, or raise why it may not pass."""
        presented = _credential_of(scope["headers"])
        key = find_key(self._keys(), presented) if presented is not None else None
        if key is None:
            reason = _MISSING if presented is None else _WRONG
            raise HTTPException(401, reason, headers=_CHALLENGE)
        if self._scope not in key.scopes:
            raise HTTPException(403, f"This API key is not for {self._scope!r}.")
        scope[CALLER] = key.name
        exchange = scope.get(EXCHANGE)
        if exchange is not None:
            exchange.key = key.name
        return key.name

    def __repr__(self) -> str:
        return f"<ApiKeys for {self._scope!r}>"


def _no_keys() -> tuple[Key, ...]:
    return ()


def _credential_of(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """Give the one key of a request, as the bytes that were sent; `None` where it has none."""
    given = dict(headers)
    name = _HEADER_NAME if _HEADER_NAME in given else b"authorization"
    value = given.get(name)
    if value is None:
        return None
    if len(given) < len(headers) and list(map(_name_of_header, headers)).count(name) > 1:
        return b""  # which of them was meant, nobody knows: it is no key
    if name is not _HEADER_NAME:
        scheme, _, value = value.strip().partition(b" ")
        if scheme.lower() != b"bearer":
            return None
    value = value.strip()
    return value if len(value) <= LONGEST else b""
