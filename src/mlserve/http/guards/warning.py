"""The warning of a server that anybody in its network may use."""

import ipaddress

from mlserve.observability.loggers import get_logger
from mlserve.registry import Registry

__all__ = ["is_loopback", "warn_if_open"]

logger = get_logger(__name__)

_OPEN = (
    "ANYBODY WHO REACHES %s MAY USE THIS SERVER: none of its `dependencies` asks for credentials."
    " Add `dependencies=[Depends(api_keys())]`, or listen on 127.0.0.1 behind a proxy that does."
)


def warn_if_open(host: str, registry: Registry | None) -> None:
    """Warn, loudly, of models that listen to the network and ask nobody for credentials."""
    if registry is not None and not registry.is_guarded and not is_loopback(host):
        logger.warning(_OPEN, host or "this machine")


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address; a name that says nothing is open."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
