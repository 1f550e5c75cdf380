"""Rate limits and quotas as a FastAPI dependency."""

import inspect
import math
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlserve.access.stores import MemoryStore, RateStore, StoreError
from mlserve.access.windows import Rate, Reading
from mlserve.errors import ConfigurationError
from mlserve.http.exchange import EXCHANGE, headers_of
from mlserve.http.guards.caller import By, caller_of, require_by
from mlserve.http.guards.own import OwnGuard
from mlserve.observability.loggers import get_logger
from mlserve.observability.metrics import STORE_FAILURES
from mlserve.registry import Registry

__all__ = ["RateLimit", "rate_limit"]

logger = get_logger(__name__)

_NAME = re.compile(r"[ !#-\[\]-~]{1,64}")  # what may stand in a quoted string of a header

Cost = int | Literal["tokens"] | Callable[[Request], int | Awaitable[int]]
"""What a request takes of a limit."""


def rate_limit(
    rate: str,
    *,
    by: By = "key",
    cost: Cost = 1,
    store: RateStore | None = None,
    name: str | None = None,
    on_failure: Literal["serve", "refuse"] = "serve",
) -> Callable[..., Awaitable[None]]:
    """
    Make a dependency that bounds how much each caller may ask for.

    In no interval as long as the period, wherever it begins, a caller gets more than the limit: a
    sliding window, see `mlserve.access.windows`. What is too much is answered 429 `rate_limited`
    with `Retry-After`. Every answer has `RateLimit-Policy` and `RateLimit`
    (draft-ietf-httpapi-ratelimit-headers-10): the limit, what remains, and when all of it is there.

    Args:
        rate: How much in which time, such as `100/minute` or `5/10 seconds`; units are second,
            minute, hour and day.
        by: By what callers are told apart: `"key"`, the name of the API key that an `api_keys`
            before this one has let pass, else the address; `"address"` in any case; or a function
            of the request that names the caller. Of IPv6 addresses the first 64 bits count.
        cost: What a request takes of the limit: a number; a function of the request, `async def`
            or not; or `"tokens"`: what hooks have noted as `prompt_tokens` and `completion_tokens`,
            charged when the request has ended. It is let in while anything is left then.
        store: Where it is counted; `None` = in the memory of this process, for 65,536 callers.
            `mlserve.integrations.redis.RedisStore` counts for several processes.
        name: The name of the limit in headers and in its store, where limits of one name are one;
            `None` = the rate as it is written.
        on_failure: Whether requests are served or refused with 503 while the store is gone.

    Raises:
        ConfigurationError: If a value is malformed or out of range.

    Example:
        >>> server.add("double", Double, dependencies=[Depends(rate_limit("100/minute"))])
    """
    return RateLimit(
        Rate.parse(rate),
        by=by,
        cost=cost,
        store=MemoryStore() if store is None else store,
        name=rate if name is None else name,
        on_failure=on_failure,
    )


class RateLimit(OwnGuard):
    """
    Asks a store for room. Event loop only.

    Args:
        rate: How much in which time.
        by: By what callers are told apart.
        cost: What a request takes.
        store: Where it is counted.
        name: The name of the limit.
        on_failure: What happens while the store is gone.
    """

    def __init__(
        self,
        rate: Rate,
        *,
        by: By,
        cost: Cost,
        store: RateStore,
        name: str,
        on_failure: str,
    ) -> None:
        require_by(by)
        _require_cost(cost, rate)
        if isinstance(store, type) or not isinstance(store, RateStore):
            raise ConfigurationError(f"`store` must be a store such as `RedisStore(…)`: {store!r}.")
        if not _NAME.fullmatch(str(name)):
            raise ConfigurationError(
                f"`name` must be 1 to 64 printable ASCII characters without quotes, got {name!r}."
            )
        if on_failure not in ("serve", "refuse"):
            raise ConfigurationError(
                f"`on_failure` must be 'serve' or 'refuse', got {on_failure!r}."
            )
        self._rate = rate
        self._by = by
        self._cost = cost
        self._store = store
        self._name = name
        self._refuses = on_failure == "refuse"
        self._trouble = f"rate limit {name!r}"

    async def __call__(self, request: Request, response: Response) -> None:
        """Let a request pass, or refuse it."""
        for header, value in (await self._admit(request)).items():
            response.headers.append(header, value)

    async def let_pass(self, request: Request) -> None:
        """Let a request pass that is within the limit."""
        await self._admit(request)

    async def _admit(self, request: Request) -> dict[str, str]:
        """Let a request pass, and give what its answer says of the limit."""
        key = f"{self._name}|{caller_of(request, self._by)}"
        is_later = self._cost == "tokens"
        cost = 0 if is_later else await self._cost_of(request)
        reading = await self._take(request, key, needs=1 if is_later else cost, cost=cost)
        if reading is None:
            return {}
        headers = self._headers(reading)
        noted = headers_of(request.scope)  # for answers that are not FastAPI's to make
        for header, value in headers.items():
            noted.append((header.lower().encode(), value.encode()))
        if not reading.is_admitted:
            raise _too_much(reading.retry_after_s, headers)
        if is_later:
            exchange = request.scope.get(EXCHANGE)
            if exchange is not None:
                charge = partial(self._charge, request.app, key)
                exchange.afterwards = [*exchange.afterwards, charge]
        return headers

    async def _cost_of(self, request: Request) -> int:
        if not callable(self._cost):
            return int(self._cost)
        cost: Any = self._cost(request)
        if inspect.isawaitable(cost):
            cost = await cost
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 0:
            raise TypeError(f"`cost` must return a whole number from 0 on, got {cost!r}.")
        return cost

    async def _charge(self, app: Any, key: str, n_tokens: int) -> None:
        if n_tokens > 0:
            try:
                await self._store.take(key, self._rate, needs=0, cost=n_tokens)
            except StoreError as exc:
                self._note_failure(app, exc)

    async def _take(self, request: Request, key: str, *, needs: int, cost: int) -> Reading | None:
        registry: Registry | None = getattr(request.app.state, "mlserve_registry", None)
        if registry is not None and self._store.close not in registry.closers:
            registry.closers.append(self._store.close)
        try:
            reading = await self._store.take(key, self._rate, needs=needs, cost=cost)
        except StoreError as exc:
            self._note_failure(request.app, exc)
            if self._refuses:
                raise HTTPException(
                    503, "Limits cannot be counted now.", headers={"Retry-After": "1"}
                ) from None
            return None
        if registry is not None:
            registry.troubles.pop(self._trouble, None)
        return reading

    def _note_failure(self, app: Any, error: StoreError) -> None:
        STORE_FAILURES.inc()
        registry: Registry | None = getattr(app.state, "mlserve_registry", None)
        if registry is None or self._trouble not in registry.troubles:
            logger.warning("rate_limit.store.failed", extra={"reason": str(error)})
        if registry is not None:
            what = "Requests are refused." if self._refuses else "Requests are not limited."
            registry.troubles[self._trouble] = f"Its store cannot be reached. {what}"

    def _headers(self, reading: Reading) -> dict[str, str]:
        """
        Say what the limit is and what is left of it.

        Source:
            draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4.
        """
        remaining, reset_s = max(0, reading.remaining), math.ceil(reading.reset_s)
        return {
            "RateLimit-Policy": f'"{self._name}";q={self._rate.limit};w={self._rate.period_s}',
            "RateLimit": f'"{self._name}";r={remaining};t={reset_s}',
        }

    def __repr__(self) -> str:
        return f"<RateLimit {self._name!r}>"


def _require_cost(cost: Cost, rate: Rate) -> None:
    if callable(cost) or cost == "tokens":
        return
    if type(cost) is not int or not 1 <= cost <= rate.limit:
        raise ConfigurationError(
            f"`cost` must be a whole number from 1 to the limit of {rate.limit}, 'tokens' or a"
            f" function of the request, got {cost!r}."
        )


def _too_much(retry_after_s: float, headers: dict[str, str]) -> HTTPException:
    if math.isinf(retry_after_s):
        text = "This request alone is more than the rate limit allows. Ask for less at once."
        return HTTPException(429, text, headers=headers)
    wait_s = max(1, math.ceil(retry_after_s))
    return HTTPException(
        429,
        f"You have reached the rate limit. Send the request again in {wait_s} s.",
        headers={"Retry-After": str(wait_s), **headers},
    )
