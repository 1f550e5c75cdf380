"""Heads by what is wrong with them: headers, request ids, targets, query strings, hosts."""

from collections.abc import Iterator
from urllib.parse import quote

from tests.http.bad_models import JSON
from tests.http.wire import CANARY

__all__ = ["HANDSHAKES", "HEADERS", "HOSTS", "QUERIES", "REQUEST_IDS", "TARGETS"]


def _content_types() -> Iterator[tuple[str, list[bytes]]]:
    kinds = ("", "text/plain", "text/json", "application/jsonp", "application", "/", "json", "*/*")
    more = ("application/x-www-form-urlencoded", "multipart/form-data", "image/png", "a" * 5000)
    odd: tuple[str, ...] = (
        "application/json/json",
        "application//json",
        "application/xml; application/json",
    )
    odd += ("application/octet-stream", ";application/json", "é", "a/b;;")
    for kind in (*kinds, *more, *odd):
        yield f"content type {kind[:40]!r}", [b"Content-Type: " + kind.encode()]
    yield "no content type", []
    encodings = ("gzip", "deflate", "br", "zstd", "x-gzip", "gzip, identity", "a" * 999, "ü", "*")
    for encoding in encodings:
        yield f"encoding {encoding[:40]!r}", [JSON, b"Content-Encoding: " + encoding.encode()]


def _steering() -> Iterator[tuple[str, list[bytes]]]:
    times = ("-1", "0", "-0.0", "NaN", "nan", "inf", "-inf", "1e999", "abc", "", " ", "0x10", "1 1")
    more = (CANARY, "1s", "1,5", "٣", "1;2", "1e", "--1", "1" * 5000, "é", "1e-999", "1_0")
    for text in (*times, *more):
        yield f"timeout {text[:40]!r}", [JSON, b"X-Request-Timeout: " + text.encode()]
    for text in ("10", "-1", "a", "", "1.5", "٣", CANARY, "9" * 999, "é", "²", "0 0", "+1"):
        yield f"priority {text[:40]!r}", [JSON, b"X-Request-Priority: " + text.encode()]


HEADERS: dict[str, list[bytes]] = dict([*_content_types(), *_steering()])
"""Header lines that make a good request a bad one."""

REQUEST_IDS: list[bytes] = [
    b"",
    b"two words",
    b"a\tb",
    b"x" * 129,
    b"x" * 5000,
    b"\xe4",
    "é".encode(),
    b'"><script>',
    b"a%0d%0aX-Injected: 1",
    "\u0130\u010d\u010aX-Injected: 1".encode(),
]
"""What a client may say, whatever of it is taken; none contains what HTTP itself forbids."""


def _targets() -> Iterator[tuple[str, bytes]]:
    names = ".. ../ ../.. ../../../../etc/passwd . ... - _ * ~ $x ;".split()
    names += "%2e%2e %2e%2e%2f ..%2f %2e%2e/%2e%2e/ ..%5c %252e%252e %c0%ae%c0%ae".split()
    names += "%00 text%00 %00text %0d%0aX-Injected:%201 %0a %7f %ff%fe %u002e".split()
    names += r"C: C:%5C C:\ \\host\share %5c%5chost%5cshare file:%2f%2f CON NUL".split()
    names += map(quote, ("．．", "․․", "‥", "∕", "ｔext", "te\u200bxt"))
    names += "text. text%20 %20text TEXT text;v=1 text%2fx text%3f tex%74x".split()
    names += "% %zz %2 {name} %7Bname%7D <script> '%20OR%201=1-- $(id) `id`".split()
    names += ["a" * 65, "a" * 5_000, "%41" * 5_000, "a/" * 2_000, quote("é" * 3_000), "__class__"]
    places = ("/v1/models/{}/predict", "/v1/models/{}/stream", "/models/{}/predict")
    more = ("/{}/models/text/predict", "/v1/models/{}", "/v1/models/text/{}", "/{}")
    for name in names:
        for place in (*places, *more):
            yield f"{place} with {name[:24]!r}", place.replace("{}", name).encode()
    for version in "v0 v01 v-1 v2 v1.0 V1 v v99999999999999999999 v1%00 v١".split():
        yield f"version {version!r}", f"/{version}/models/text/predict".encode()


TARGETS: dict[str, bytes] = dict(_targets())
"""Paths that lead nowhere; those with what HTTP forbids are refused as no request."""

QUERIES: dict[str, str] = {
    "nothing": "",
    "a wrong number": f"text=a&n={CANARY}",
    "a wrong share": f"text=a&share={CANARY}",
    "a wrong tone": f"text=a&tone={CANARY}",
    "NaN": "text=a&share=nan",
    "infinity": "text=a&share=-Infinity",
    "1e400": "text=a&share=1e400",
    "many digits": "text=a&n=" + "9" * 5_000,
    "many digits of a share": "text=a&share=" + "9" * 5_000,
    "a number with controls": "text=a&n=1%00",
    "no UTF-8": "text=a&n=%ff",
    "a surrogate": "text=a&n=%ed%a0%80",
    "a broken percent": "text=a&n=%zz",
    "twice": f"text=a&n=1&n={CANARY}",
    "in brackets": f"text[]={CANARY}",
    "other letters": f"TEXT={CANARY}",
    "many fields": "&".join(f"a{n}=1" for n in range(3_000)),
    "many separators": "&" * 5_000,
    "JSON": quote(f'{{"text": "{CANARY}"}}'),
    "a semicolon": f"text=a;n={CANARY}&n=x",
    "an empty number": "text=a&n=",
    "half a number": "text=a&n=1.5",
}
"""Query strings that are no request of `ask`."""

HOSTS: list[bytes] = [
    *(b"", b"[", b"[::1", b"[::1]:x", b"a b", b"../..", b"a/../b", b'a"b', b"\xff", b"a:99999999"),
    *(b"a:b", b"@", b"a@b:c@d", b"x" * 5_000, b"a,b", b"http://x", b"%00", b"a?b#c", b"\\", b"a;b"),
]
"""What a client may name as host: it must not matter."""

_UPGRADE = [b"Connection: Upgrade", b"Upgrade: websocket"]
_KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
_VERSION = b"Sec-WebSocket-Version: 13"
HANDSHAKES: dict[str, tuple[str, list[bytes]]] = {
    "no key": ("GET", [*_UPGRADE, _VERSION]),
    "two keys": ("GET", [*_UPGRADE, _KEY, _KEY, _VERSION]),
    "a key that is no Base64": ("GET", [*_UPGRADE, b"Sec-WebSocket-Key: !!", _VERSION]),
    "a short key": ("GET", [*_UPGRADE, b"Sec-WebSocket-Key: aGVsbG8=", _VERSION]),
    "a key that is no ASCII": ("GET", [*_UPGRADE, b"Sec-WebSocket-Key: \xff", _VERSION]),
    "no version": ("GET", [*_UPGRADE, _KEY]),
    "another version": ("GET", [*_UPGRADE, _KEY, b"Sec-WebSocket-Version: 99"]),
    "another method": ("POST", [*_UPGRADE, _KEY, _VERSION]),
    "a length": ("GET", [*_UPGRADE, _KEY, _VERSION, b"Content-Length: 5"]),
    "chunks": ("GET", [*_UPGRADE, _KEY, _VERSION, b"Transfer-Encoding: chunked"]),
    "many headers": ("GET", [*_UPGRADE, _KEY, _VERSION, *[b"X-A: b"] * 200]),
    "a long header": ("GET", [*_UPGRADE, _KEY, _VERSION, b"X-A: " + b"b" * 20_000]),
    "odd extensions": (
        "GET",
        [*_UPGRADE, _KEY, _VERSION, b"Sec-WebSocket-Extensions: ;;permessage-deflate; a=\xff,,"],
    ),
    "odd protocols": ("GET", [*_UPGRADE, _KEY, _VERSION, b"Sec-WebSocket-Protocol: ,\xff,,"]),
    "h2c": ("GET", [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"]),
    "what nobody knows": ("POST", [b"Connection: Upgrade", b"Upgrade: \xff, websocket"]),
}
"""Offers to speak something else than HTTP/1.1."""
