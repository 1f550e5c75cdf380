"""
Heads of requests that were parsed before.

A client that keeps its connection sends the same head again and again, to the byte, and what was
found in it then, by the parser and by the checks of a head, holds for the next one too. Only heads
of plain predictions are kept, and none with anything in it that belongs to one request, such as an
id. All connections of a process share them, but for those with credentials, of which a connection
remembers its own last one. Event loop only.
"""

from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from mlserve.http.route import ModelRoute

__all__ = ["KnownHead", "KnownHeads"]

_LONGEST_BYTES = 1024
_COMMON = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"connection",
        b"content-length",
        b"content-type",
        b"host",
        b"user-agent",
        b"x-request-priority",
        b"x-request-timeout",
    }
)
_CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
_OF_SCOPE = ("headers", "method", "path", "type")  # nobody looks at more on the short way


@dataclass(frozen=True, slots=True)
class KnownHead:
    """What was found in a head."""

    route: ModelRoute
    """The route, which answers it without a task."""
    scope: dict[str, Any]
    """What is needed of the scope that the server has made."""
    headers: dict[bytes, bytes]
    """Its headers; of several of a name the first one."""
    n_body: int
    """How many bytes its body has."""


class KnownHeads:
    """
    The heads that were seen last.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._heads: dict[bytes, KnownHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(
        self, data: bytes, own: tuple[bytes, KnownHead] | None = None
    ) -> tuple[KnownHead, bytes] | None:
        """
        Give what is known of a request that came in one piece, and its body.

        Args:
            data: The request.
            own: The head that only this connection remembers, if it does.
        """
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        known = self._heads.get(head) if own is None or own[0] != head else own[1]
        if known is None or len(data) != end + known.n_body:
            return None
        return known, data[end:]

    def learn(
        self, data: bytes, route: ModelRoute, scope: Scope, headers: dict[bytes, bytes]
    ) -> tuple[bytes, KnownHead] | None:
        """
        Keep the head of a request that goes the short way.

        Args:
            data: The request, from its first byte on.
            route: Its route.
            scope: Its scope.
            headers: Its headers.

        Returns:
            A head that only its connection may remember.
        """
        end = data.find(b"\r\n\r\n") + 4
        id_header = route.settings.request_id_header.lower().encode()
        others = headers.keys() - (_COMMON - {id_header})
        if not (others <= _CREDENTIALS and 4 < end <= _LONGEST_BYTES):
            return None
        n_body = int(headers[b"content-length"])
        if len(data) != end + n_body:
            return None  # the head belongs to another request, which came right before
        kept = {name: scope[name] for name in _OF_SCOPE}
        known = KnownHead(route, kept, headers, n_body)
        if others:
            return data[:end], known
        if len(self._heads) >= self._most:
            del self._heads[next(iter(self._heads))]
        self._heads[data[:end]] = known
        return None

    def __repr__(self) -> str:
        return f"<KnownHeads {len(self)} of {self._most}>"
