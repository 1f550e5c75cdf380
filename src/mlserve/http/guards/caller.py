"""Who asks: the name of an API key, else the address."""

import hashlib
import ipaddress
from collections.abc import Callable
from typing import Literal

from starlette.requests import Request

from mlserve.errors import ConfigurationError

__all__ = ["CALLER", "By", "caller_of", "require_by"]

CALLER = "mlserve.caller"
"""Where the scope holds the name of the API key that a request came with."""

By = Literal["key", "address"] | Callable[[Request], str]
"""By what callers are told apart."""

_LONGEST = 128


def require_by(by: By) -> None:
    """
    Refuse what callers cannot be told apart by.

    Raises:
        ConfigurationError: If it is neither a function nor one of the two words.
    """
    if by not in ("key", "address") and not callable(by):
        raise ConfigurationError(
            f"`by` must be 'key', 'address' or a function of the request, got {by!r}."
        )


def caller_of(request: Request, by: By) -> str:
    """
    Name who asks, in at most 128 characters.

    Args:
        request: The request.
        by: `"key"`: the name of its API key, if an `api_keys` before has let it pass, else its
            address; `"address"`: its address in any case; or a function that names the caller.
    """
    if callable(by):
        name = by(request)
        if not isinstance(name, str):
            raise TypeError(f"`by` must return a string, got {type(name).__name__}.")
        caller = f"by:{name}"
    elif by == "key" and CALLER in request.scope:
        caller = f"key:{request.scope[CALLER]}"
    else:
        caller = f"address:{_address_of(request)}"
    if len(caller) <= _LONGEST:
        return caller
    return f"sha256:{hashlib.sha256(caller.encode(errors='surrogatepass')).hexdigest()}"


def _address_of(request: Request) -> str:
    """Give the client's address; of IPv6 the network of 64 bits, which is what one client has."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket, or a test client
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
