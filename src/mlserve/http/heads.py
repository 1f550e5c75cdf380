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
_LENGTH = b"\r\ncontent-length: "
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
        start = data.find(b"ength: ") + 7
        stop = data.find(b"\r\n", start)
        end = data.find(b"\r\n\r\n", stop) + 4
        head = data[:start] + data[stop:end]
        known = self._heads.get(head) if own is None or own[0] != head else own[1]
        if known is None:
            return None
        n_body = len(data) - end
        if data[start:stop] != b"%d" % n_body or n_body > known.route.max_body_bytes:
            return None
        return known, data[end:]

    def learn(
        self,
        data: bytes,
        route: ModelRoute,
        scope: Scope,
        headers: dict[bytes, bytes],
        wishes: tuple[float, int],
    ) -> tuple[bytes, KnownHead] | None:
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
        end = data.find(b"\r\n\r\n") + 4
        start = data.find(b"ength: ") + 7
        stop = data.find(b"\r\n", start)
        settings = route.settings
        id_header = settings.request_id_header.lower().encode()
        others = headers.keys() - (_COMMON - {id_header})
        lowered = data[:end].lower()
        is_usual = (
            others <= _CREDENTIALS
            and stop < end <= _LONGEST_BYTES
            and lowered[:start].endswith(_LENGTH)
            and data[start:stop] == headers[b"content-length"]
            and lowered.count(b"\r\ncontent-length") == 1
            and "content-length" not in map(str.lower, settings.forward_headers)
        )
        # Else the head may belong to another request, which came right before.
        if not (is_usual and len(data) == end + int(headers[b"content-length"])):
            return None
        known = KnownHead(route, {name: scope[name] for name in _OF_SCOPE}, headers, wishes)
        head = data[:start] + data[stop:end]
        if others:
            return head, known
        if head not in self._heads and len(self._heads) >= self._most:
            del self._heads[next(iter(self._heads))]
        self._heads[head] = known
        return None

    def __repr__(self) -> str:
        return f"<KnownHeads {len(self)} of {self._most}>"
