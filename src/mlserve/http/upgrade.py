"""Offers to speak something else than HTTP/1.1: which are handed over, and which are no offer."""

import re

import httptools
from starlette.exceptions import HTTPException

__all__ = ["head_without_offer", "require_handshake"]

_MAX_HEADERS = 100
_LONGEST_HEADER = 8000
_TOKEN = rb"[\w!#$%&'*+.^`|~-]+"
_LISTED = rb"%s(?:[ \t]*;[ \t]*%s(?:=%s|=\"%s\")?)*" % (_TOKEN, _TOKEN, _TOKEN, _TOKEN)
_LIST = re.compile(rb"%s(?:[ \t]*,[ \t]*%s)*" % (_LISTED, _LISTED))
_FORMS = {
    b"sec-websocket-key": re.compile(rb"[A-Za-z0-9+/]{22}=="),
    b"sec-websocket-version": re.compile(rb"13"),
    b"sec-websocket-extensions": _LIST,
    b"sec-websocket-protocol": _LIST,
    b"connection": _LIST,
}
_ONCE = frozenset({b"sec-websocket-key", b"sec-websocket-version"})
_NEVER = frozenset({b"content-length", b"transfer-encoding"})


def require_handshake(method: bytes, headers: list[tuple[bytes, bytes]], *, is_alone: bool) -> None:
    """
    Refuse a request that offers to speak WebSocket and is no handshake.

    Who takes the connection over would answer it with an error of its own form, or never.

    Args:
        method: The method.
        headers: The headers, their names in lower case.
        is_alone: Whether no answer to an earlier request is due, which would get between.

    Raises:
        HTTPException: 400, if it is none.

    Source:
        RFC 6455, section 4.2.1.
    """
    names = [name for name, _ in headers]
    is_handshake = (
        method == b"GET"
        and is_alone
        and len(headers) <= _MAX_HEADERS
        and all(len(name) + len(value) <= _LONGEST_HEADER for name, value in headers)
        and all(names.count(name) == 1 for name in _ONCE)
        and _NEVER.isdisjoint(names)
        and all(name not in _FORMS or _FORMS[name].fullmatch(value) for name, value in headers)
    )
    if not is_handshake:
        raise HTTPException(400, "The request is no WebSocket handshake.")


def head_without_offer(
    parser: httptools.HttpRequestParser, target: bytes, headers: list[tuple[bytes, bytes]]
) -> bytes:
    """
    Write a request's head again, without what it offers.

    Args:
        parser: Has parsed the head.
        target: What is requested.
        headers: The headers, their names in lower case.
    """
    method, version = parser.get_method(), parser.get_http_version().encode()
    lines = [b"%s %s HTTP/%s" % (method, target, version)]
    lines += [b"%s: %s" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])
