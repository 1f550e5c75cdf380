"""
Rate limits that several processes and machines share, in Redis 5 or later, or Valkey.

Needs `pip install 'mlserve[redis]'`.
"""

import asyncio
import math
import time
from typing import Any
from urllib.parse import urlsplit

from mlserve.access.stores import StoreError
from mlserve.access.windows import N_PARTS, Rate, Reading
from mlserve.errors import ConfigurationError

try:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
except ImportError as exc:
    raise ImportError(
        "`mlserve.integrations.redis` needs the package redis, which is not installed."
        " Run: pip install 'mlserve[redis]'"
    ) from exc

__all__ = ["RedisStore"]

_SCHEMES = ("redis", "rediss", "unix")
_PAUSE_S = 1.0

# `Window.take` of `mlserve.access.windows`, with a hash that has a field for each part that is not
# empty. Scripts run one at a time and all read the server's clock, so that no process has to agree
# with another about anything.
_TAKE = """
local limit, period_us, n_parts = tonumber(ARGV[1]), tonumber(ARGV[2]) * 1000000, tonumber(ARGV[3])
local needs, cost = tonumber(ARGV[4]), tonumber(ARGV[5])
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local part_us = period_us / n_parts
local number = math.floor(now_us / part_us)
local held = redis.call('HGETALL', KEYS[1])
for i = 1, #held, 2 do number = math.max(number, tonumber(held[i])) end
local used, newest, parts, gone = 0, nil, {}, {}
for i = 1, #held, 2 do
    local part, taken = tonumber(held[i]), tonumber(held[i + 1])
    if part < number - n_parts then
        gone[#gone + 1] = held[i]
    else
        used = used + taken
        newest = math.max(newest or part, part)
        parts[#parts + 1] = {part, taken}
    end
end
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
local function left_us(part) return math.ceil((part + n_parts + 1) * part_us - now_us) end
local is_admitted = needs == 0 or used + needs <= limit
local wait_us = 0
if is_admitted and cost > 0 then
    redis.call('HINCRBY', KEYS[1], string.format('%.0f', number), string.format('%.0f', cost))
    redis.call('PEXPIRE', KEYS[1], math.ceil(left_us(number) / 1000))
    used, newest = used + cost, number
elseif not is_admitted then
    table.sort(parts, function(one, other) return one[1] < other[1] end)
    local too_much = used + needs - limit
    wait_us = -1
    for _, part in ipairs(parts) do
        too_much = too_much - part[2]
        if too_much <= 0 then
            wait_us = left_us(part[1])
            break
        end
    end
end
return {is_admitted and 1 or 0, limit - used, wait_us, newest and left_us(newest) or 0}
"""


class RedisStore:
    """
    Keeps the windows of `rate_limit` in Redis. Used on the event loop; connects when it is asked.

    After a failure nothing is asked for a second, so that requests do not wait for a server that
    does not answer.

    Args:
        url: Such as `redis://:password@host:6379/0`, `rediss://…` with TLS, or `unix://…`.
        prefix: What the names of its keys begin with.
        timeout_s: How long connecting, and one answer, may take, in seconds.
        max_connections: How many connections are open at most; further requests wait for one.

    Raises:
        ConfigurationError: If a value is malformed or out of range.

    Example:
        >>> store = RedisStore("redis://localhost:6379/0")
        >>> guard = Depends(rate_limit("100/minute", store=store))
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "mlserve:rate:",
        timeout_s: float = 0.5,
        max_connections: int = 64,
    ) -> None:
        if not 0 < timeout_s < math.inf:
            raise ConfigurationError(f"`timeout_s` must be more than 0, got {timeout_s!r}.")
        if max_connections < 1:
            raise ConfigurationError(
                f"`max_connections` must be at least 1, got {max_connections!r}."
            )
        self._place = _place_of(url)
        self._url = url
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._script: Any = None
        self._closed_until = -math.inf

    async def take(self, key: str, rate: Rate, *, needs: int, cost: int) -> Reading:
        """
        Take something of a key's window if there is room, as `Window.take` does.

        Raises:
            StoreError: If Redis cannot be reached or refuses.
        """
        if time.monotonic() < self._closed_until:
            raise StoreError("Redis was not asked again yet.")
        script = self._opened()
        try:
            is_admitted, remaining, wait_us, reset_us = await script(
                keys=[self._prefix + key],
                args=[rate.limit, rate.period_s, N_PARTS, needs, cost],
            )
        except (RedisError, OSError) as exc:
            self._closed_until = time.monotonic() + _PAUSE_S
            raise StoreError(f"{type(exc).__name__}: {exc}") from exc
        wait_s = math.inf if wait_us < 0 else wait_us / 1e6
        return Reading(bool(is_admitted), remaining, wait_s, reset_us / 1e6)

    async def close(self) -> None:
        """Close the connections of this event loop; another `take` opens new ones."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    def _opened(self) -> Any:
        """Give the script, with a client of the event loop that runs."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            pool = BlockingConnectionPool.from_url(
                self._url,
                max_connections=self._max_connections,
                timeout=self._timeout_s,
                socket_timeout=self._timeout_s,
                socket_connect_timeout=self._timeout_s,
                retry=Retry(NoBackoff(), 1),  # of a connection that was closed while it was idle
            )
            self._loop, self._client = loop, Redis.from_pool(pool)
            self._script = self._client.register_script(_TAKE)
        return self._script

    def __repr__(self) -> str:
        return f"<RedisStore {self._place}>"


def _place_of(url: str) -> str:
    """Say where a URL points, without its password."""
    try:
        parts = urlsplit(str(url))
        place = f"{parts.scheme}://{parts.hostname or ''}:{parts.port or ''}{parts.path}"
    except ValueError:
        parts, place = None, ""
    if parts is None or parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            "The URL of Redis must look like 'redis://host:6379/0', 'rediss://…' or 'unix://…'."
        )
    return place
