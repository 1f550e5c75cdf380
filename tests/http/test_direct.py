"""The short way of a prediction and the ordinary one: to whoever looks on they are the same."""

import json
import logging
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from tests.http.direct_models import (
    ADMIN,
    ERRORS,
    HOOKS,
    KEY,
    MEDIA_TYPES,
    request_to,
    server_of,
)
from tests.http.ways import DIRECT, FOREIGN, ORDINARY, Place, places

pytestmark = pytest.mark.slow

JSON = b"Content-Type: application/json"
GOOD = b'{"text":"hello"}'
OUTPUTS = (
    "no receipt",
    "nothing",
    "NaN",
    "deep NaN",
    "object",
    "circle",
    "surrogate",
    "bytes",
    "in place",
    "refused in place",
    "too few",
    "no list",
)
BODIES: dict[str, bytes] = {
    "good": GOOD,
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"text":"\xff"}',
    "UTF-16": '{"text":"a"}'.encode("utf-16"),
    "with a mark": b"\xef\xbb\xbf" + GOOD,
    "another type": b"[1]",
    "null": b"null",
    "unknown field": b'{"text":"a","more":1}',
    "NaN": b'{"text":"a","score":NaN}',
    "infinite": b'{"text":"a","score":1e999}',
    "deep": b"[" * 900 + b"]" * 900,
    "two values": b"{}{}",
    "surrogate": b'{"text":"\\ud800"}',
    "over the limit": b'{"text":"%b"}' % (b"x" * 2000),
}
HEADS: dict[str, tuple[bytes, ...]] = {
    "no type": (),
    "text": (b"Content-Type: text/plain",),
    "of a type with parameters": (b"Content-Type: application/json; charset=utf-8",),
    "of a type of JSON": (b"Content-Type: application/cloudevents+json",),
    "loud": (b"CONTENT-TYPE: APPLICATION/JSON",),
    "two types": (JSON, b"Content-Type: text/plain"),
    "two types, the other first": (b"Content-Type: text/plain", JSON),
    "empty type": (b"Content-Type:",),
    "gzip": (JSON, b"Content-Encoding: gzip"),
    "identity": (JSON, b"Content-Encoding: identity"),
    "no encoding": (JSON, b"Content-Encoding:"),
    "timeout": (JSON, b"X-Request-Timeout: 5"),
    "malformed timeout": (JSON, b"X-Request-Timeout: soon"),
    "no time": (JSON, b"X-Request-Timeout: 0"),
    "endless": (JSON, b"X-Request-Timeout: inf"),
    "two timeouts": (JSON, b"X-Request-Timeout: 5", b"X-Request-Timeout: soon"),
    "timeout and text": (b"Content-Type: text/plain", b"X-Request-Timeout: soon"),
    "priority": (JSON, b"X-Request-Priority: 3"),
    "malformed priority": (JSON, b"X-Request-Priority: first"),
    "forwarded": (JSON, b"X-Color: red", b"X-Color: blue", b"Accept: a/b", b"Accept: c/d"),
    "last": (JSON, b"Connection: close"),
    "kept alive": (JSON, b"Connection: keep-alive"),
    "with an id": (JSON, b"X-Request-Id: mine"),
    "with a mad id": (JSON, b"X-Request-Id: \xff \xfe"),
    "with a key": (JSON, b"X-API-Key: nobody-asks-for-it"),
}


def order(**members: Any) -> bytes:
    return json.dumps({"text": "a", **members}).encode()


def hooks_of(model: str) -> dict[str, bytes]:
    orders = {
        f"{error} in {hook}": order(hook=hook, error=error) for hook in HOOKS for error in ERRORS
    }
    orders |= {f"{output} comes out": order(output=output) for output in OUTPUTS}
    requests = {name: request_to(model, body, JSON) for name, body in orders.items()}
    late = request_to(model, order(output="late"), JSON, b"X-Request-Timeout: 0.05")
    return {**requests, "late": late}


def heads_of(model: str, *lines: bytes) -> dict[str, bytes]:
    return {name: request_to(model, GOOD, *lines, *more) for name, more in HEADS.items()}


def json_to(model: str, values: dict[str, Any]) -> dict[str, bytes]:
    bodies = {name: json.dumps(value).encode() for name, value in values.items()}
    return {name: request_to(model, body, JSON) for name, body in bodies.items()}


PATHS = ("/v1/models/{}/predict", "/v2/models/{}/predict", "/models/{}/predict")
STEPS = ("count:3", "admit:0", "crash:0", "raise:1", "error:1", "odd:3", "count:0")
KEY_HEADS = {
    "no key": (JSON,),
    "a wrong key": (JSON, b"X-API-Key: wrong"),
    "a key of another scope": (JSON, b"X-API-Key: " + ADMIN.encode()),
    "a good key": (JSON, b"Authorization: Bearer " + KEY.encode()),
    "two keys": (JSON, b"X-API-Key: " + KEY.encode(), b"X-API-Key: " + KEY.encode()),
    "no key and no type": (),
}
GROUPS: dict[str, dict[str, bytes]] = {
    "bodies": {name: request_to("sync", body, JSON) for name, body in BODIES.items()},
    "bodies without hooks": {
        name: request_to("plain", body, JSON) for name, body in BODIES.items()
    },
    "heads": heads_of("sync"),
    "heads with a key": heads_of("guarded", b"X-API-Key: " + KEY.encode()),
    "keys": {name: request_to("guarded", b"{", *lines) for name, lines in KEY_HEADS.items()},
    "sync hooks": hooks_of("sync"),
    "async hooks": hooks_of("async"),
    "no hooks": hooks_of("plain"),
    "hooks in a process": hooks_of("process"),
    "media types": json_to("binary", {repr(kind): {"media_type": kind} for kind in MEDIA_TYPES}),
    "steps": json_to("steps", {steps: steps for steps in STEPS}),
    "versions": {path: request_to("old", GOOD, JSON, path=path) for path in PATHS},
    "refused versions": {path: request_to("old", b"{", JSON, path=path) for path in PATHS},
}


@pytest.fixture(scope="module")
def everywhere() -> Iterator[dict[str, Place]]:
    with pytest.MonkeyPatch.context() as patch:
        # All ids are of one length, so that all answers are.
        patch.setattr("mlserve.http.exchange._numbers", count(16**7))
        with places(server_of) as found:
            yield found


@pytest.mark.parametrize("group", GROUPS)
def test_requests_are_answered_logged_counted_and_recorded_in_the_same_way_everywhere(
    everywhere: dict[str, Place], group: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")

    seen = {name: place.see(GROUPS[group], caplog) for name, place in everywhere.items()}

    assert seen[DIRECT].differing(seen[ORDINARY]) == []
    assert seen[DIRECT].differing(seen[FOREIGN]) == []
