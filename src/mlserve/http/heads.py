"""
Heads of requests that were parsed before.

A client that keeps its connection sends the same head again and again, to the byte but for the
length of the body, and what was found in it then, by the parser and by the checks of a head, holds
for the next one too. Only heads of plain predictions are kept, and none with anything in it that
belongs to one request, such as an id. All connections of a process share them, but for those with
credentials, of which a connection remembers its own last one. Event loop only.
"""

from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from mlserve.http.route import ModelRoute

__all__ = ["HeadKey", "KnownHead", "KnownHeads"]

HeadKey = tuple[bytes, bytes]
"""What stands before and what behind the length of the body, in a head."""

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
_LENGTH = b"\r\ncontent-l"
_END_OF_NAME = b"ength: "  # in upper case nobody writes it
_OF_SCOPE = ("headers", "method", "path", "type")  # nobody looks at more on the short way


@dataclass(frozen=True, slots=True)
class KnownHead:
    """What was found in a head."""

    route: ModelRoute
    """The route, which answers it without a task."""
    scope: dict[str, Any]
    """What is needed of the scope that the server has made."""
    headers: dict[bytes, bytes]
    """Its headers; of several of a name the first one, and of the length that which it had."""
    wishes: tuple[float, int]
    """The time that a request has by it, in seconds, and its priority."""


class KnownHeads:
    """
    The heads that were seen last.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._heads: dict[HeadKey, KnownHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(
        self, data: bytes, own: tuple[HeadKey, KnownHead] | None = None
    ) -> tuple[KnownHead, bytes] | None:
        """
        Give what is known of a request that came in one piece, and its body.

        Args:
            data: The request.
            own: The head that only this connection remembers, if it does.
        """
        head, end, body = data.partition(b"\r\n\r\n")
        before, _, rest = head.partition(_END_OF_NAME)
        length, _, behind = rest.partition(b"\r\n")
        key = before, behind
        known = self._heads.get(key) if own is None or own[0] != key else own[1]
        if known is None or not end:
            return None
        n_body = len(body)
        if length != b"%d" % n_body or n_body > known.route.max_body_bytes:
            return None
        return known, body

    def learn(
        self,
        data: bytes,
        route: ModelRoute,
        scope: Scope,
        headers: dict[bytes, bytes],
        wishes: tuple[float, int],
    ) -> tuple[HeadKey, KnownHead] | None:
        """
        Keep the head of a request that goes the short way.

        Args:
            data: The request, from its first byte on.
            route: Its route.
            scope: Its scope.
            headers: Its headers.
            wishes: What its headers say of its time and priority.

        Returns:
            A head that only its connection may remember.
        """
        head, end, body = data.partition(b"\r\n\r\n")
        before, _, rest = head.partition(_END_OF_NAME)
        length, _, behind = rest.partition(b"\r\n")
        settings = route.settings
        id_header = settings.request_id_header.lower().encode()
        others = headers.keys() - (_COMMON - {id_header})
        is_usual = (
            others <= _CREDENTIALS
            and len(head) <= _LONGEST_BYTES
            and before.lower().endswith(_LENGTH)
            and length == headers[b"content-length"]
            and head.lower().count(b"\r\ncontent-length") == 1
            and "content-length" not in map(str.lower, settings.forward_headers)
        )
        # Else the head may belong to another request, which came right before.
        if not (is_usual and end and len(body) == int(length)):
            return None
        known = KnownHead(route, {name: scope[name] for name in _OF_SCOPE}, headers, wishes)
        key = before, behind
        if others:
            return key, known
        if key not in self._heads and len(self._heads) >= self._most:
            del self._heads[next(iter(self._heads))]
        self._heads[key] = known
        return None

    def __repr__(self) -> str:
        return f"<KnownHeads {len(self)} of {self._most}>"
