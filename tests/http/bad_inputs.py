"""
Every bad input of the corpus, by family: which bytes are sent, and how they may be answered.

The requests are made when they are asked for: all of them together are 300 MB.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from tests.http.bad_bodies import BODIES, FORMS, is_json
from tests.http.bad_heads import HANDSHAKES, HEADERS, HOSTS, QUERIES, REQUEST_IDS, TARGETS
from tests.http.bad_models import ADAPTERS, JSON, path_of
from tests.http.wire import request_of

__all__ = ["FAMILIES", "BadInput"]


class BadInput(NamedTuple):
    """One bad input."""

    name: str
    request: bytes
    statuses: set[int]
    """How it may be answered."""


_NOT_JSON = frozenset(name for name, body in BODIES.items() if not is_json(body))
_CHUNK = 7


def _bodies(model: str) -> Iterator[BadInput]:
    for name, body in BODIES.items():
        statuses = {400, 413} if name in _NOT_JSON else {200, 400, 413, 422}
        yield BadInput(name, request_of("POST", path_of(model), body, JSON), statuses)


def _chunked() -> Iterator[BadInput]:
    for name, body in BODIES.items():
        if len(body) > 2_000:
            continue
        pieces = [body[start : start + _CHUNK] for start in range(0, len(body), _CHUNK)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        coding = b"Transfer-Encoding: chunked"
        head = request_of("POST", path_of("order"), b"", JSON, coding, length=False)
        statuses = {400} if name in _NOT_JSON else {200, 400, 422}
        yield BadInput(name, head + chunks + b"0\r\n\r\n", statuses)


def _headers() -> Iterator[BadInput]:
    for name, lines in HEADERS.items():
        request = request_of("POST", path_of("text"), b'"hello"', *lines)
        yield BadInput(name, request, {400, 415, 422})


def _request_ids() -> Iterator[BadInput]:
    for given in REQUEST_IDS:
        line = b"X-Request-Id: " + given
        yield BadInput(
            repr(given[:40]), request_of("POST", path_of("text"), b"1", JSON, line), {422}
        )


def _targets(method: str) -> Iterator[BadInput]:
    for name, target in TARGETS.items():
        statuses = {400, 404} if method == "GET" else {400, 404, 405}
        yield BadInput(name, request_of(method, target, b'"hello"', JSON), statuses)


def _queries() -> Iterator[BadInput]:
    for name, query in QUERIES.items():
        yield BadInput(name, request_of("GET", f"{path_of('ask')}?{query}"), {422})


def _forms(model: str) -> Iterator[BadInput]:
    for name, (kind, body) in FORMS.items():
        request = request_of("POST", path_of(model), body, kind)
        yield BadInput(name, request, {200, 400, 415, 422})


def _hosts() -> Iterator[BadInput]:
    for host in HOSTS:
        for target in ("/health/", "/v1/models/text/", "/nowhere", "/v1/models", "/docs"):
            request = request_of("GET", target).replace(b"Host: test", b"Host: " + host)
            yield BadInput(f"{target} of {host[:40]!r}", request, {200, 400, 404})


def _handshakes() -> Iterator[BadInput]:
    for name, (method, lines) in HANDSHAKES.items():
        for target in ("/", "/health", path_of("text"), path_of("ask"), "/v1/models/nobody"):
            request = request_of(method, target, b"", *lines, length=False)
            yield BadInput(f"{name} at {target}", request, {200, 400, 404, 405, 415, 422, 431})


FAMILIES: dict[str, Callable[[], Iterator[BadInput]]] = {
    **{f"bodies of {model}": partial(_bodies, model) for model in ADAPTERS},
    "chunked bodies": _chunked,
    "headers": _headers,
    "request ids": _request_ids,
    "targets of GET": partial(_targets, "GET"),
    "targets of POST": partial(_targets, "POST"),
    "query strings": _queries,
    "forms with other fields": partial(_forms, "photo"),
    "files alone": partial(_forms, "raw"),
    "hosts": _hosts,
    "handshakes": _handshakes,
}
"""Makes the inputs of each family."""
