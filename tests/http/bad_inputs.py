"""Bad inputs by what is wrong with them: bodies, headers, targets; and models to send them to."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel
from tests.http.wire import CANARY, request_of
from typing_extensions import TypedDict

from mlserve import Limits, ModelHandler, ModelServer, ServerSettings, Upload

__all__ = [
    "BODIES",
    "FORMS",
    "HEADERS",
    "HEALTHY",
    "JSON",
    "MAX_BODY_BYTES",
    "MODELS",
    "QUERIES",
    "TARGETS",
    "server_of_all",
]

JSON = b"Content-Type: application/json"
MAX_BODY_BYTES = 3_000_000


class Item(BaseModel):
    number: float
    size: int | Literal["small", "large"] = 1


class Order(BaseModel):
    name: str
    kind: Literal["a", "b"]
    items: list[Item]
    either: int | list[float] | None = None
    limits: dict[str, float] = {}
    anything: Any = None


@dataclass
class Point:
    x: float
    y: int = 0
    label: str | None = None


class Row(TypedDict):
    name: str
    values: list[float]


class Ask(BaseModel):
    text: str
    n: int = 1
    share: float = 0.5
    tone: Literal["kind", "rude"] = "kind"


class Photo(BaseModel):
    image: Upload
    n: int = 1


class Raw(BaseModel):
    image: Upload


REQUESTS: dict[str, Any] = {
    "order": Order,
    "point": Point,
    "row": Row,
    "text": str,
    "whole": int,
    "vector": list[float],
    "photo": Photo,
    "raw": Raw,
}
MODELS = [name for name in REQUESTS if name not in ("photo", "raw")]
"""Those that take JSON; beside them there are `ask`, which streams, `photo` and `raw`."""


class Asking(ModelHandler[Ask, str]):
    def infer(self, inputs: list[Ask]) -> list[str]:
        return [ask.text[:9] for ask in inputs]

    def stream(self, item: Ask) -> Iterator[str]:
        yield item.text[:9]


def server_of_all() -> ModelServer:
    """Make a server with a model of each request type."""
    settings = ServerSettings(head_timeout_s=0.3, body_timeout_s=0.3)
    limits = Limits(max_body_bytes=MAX_BODY_BYTES, priorities=True)
    server = ModelServer(settings=settings)
    for name, declared in REQUESTS.items():
        server.add(name, _counting(declared), limits=limits)
    return server.add("ask", Asking, limits=limits)


def _counting(declared: Any) -> type[ModelHandler[Any, int]]:
    class Count(ModelHandler[declared, int]):
        def infer(self, inputs: list[Any]) -> list[int]:
            return [1 for _ in inputs]

    return Count


HEALTHY = request_of("POST", "/v1/models/text/predict", b'"hello"', JSON)


def _texts() -> Iterator[tuple[str, str]]:
    """What is no JSON, as text."""
    yield from {
        "nothing": "",
        "spaces": " \n\t\r ",
        "a word": CANARY,
        "a form": f"name={CANARY}",
        "XML": f"<a>{CANARY}</a>",
        "YAML": f"name: {CANARY}",
        "single quotes": f"{{'name': '{CANARY}'}}",
        "names without quotes": f'{{name: "{CANARY}"}}',
        "a trailing comma": f'{{"name": "{CANARY}",}}',
        "a leading comma": f'[,"{CANARY}"]',
        "a missing comma": f'["{CANARY}" "{CANARY}"]',
        "a missing colon": f'{{"name" "{CANARY}"}}',
        "two values": f'"{CANARY}" "{CANARY}"',
        "a comment": f'/* {CANARY} */ "a"',
        "Python's words": f'[None, True, False, "{CANARY}"]',
        "undefined": "undefined",
        "a line break in a text": f'"{CANARY}\n"',
        "a tab in a text": f'"{CANARY}\t"',
        "a wrong escape": f'"{CANARY} \\x41"',
        "half an escape": f'"{CANARY} \\u12',
        "no hex digits": f'"{CANARY} \\uZZZZ"',
        "a backslash at the end": f'"{CANARY}\\',
        "a form feed between": '[1,\f2, "' + CANARY + '"]',
        "a no-break space between": '[1,\xa02, "' + CANARY + '"]',
        "the wrong bracket": f'["{CANARY}"}}',
        "a bracket too many": f'["{CANARY}"]]',
        "newline-delimited": f'{{"text": "{CANARY}"}}\n{{"text": "b"}}',
        "a sequence of events": f'data: {{"text": "{CANARY}"}}\n\n',
    }.items()
    complete = f'{{"name": "{CANARY}", "kind": "a", "items": [{{"number": 1.5}}], "text": null}}'
    for end in range(1, len(complete), 4):
        yield f"cut off after {end}", complete[:end]
    numbers = ("NaN", "-NaN", "Infinity", "-Infinity", "+1", "01", "-01", ".5", "5.", "1e", "1e+")
    for number in (*numbers, "0x10", "1_000", "1,5", "--1", "1e1.5", "١", "½", "∞", "-", "0b1"):
        yield f"the number {number}", number
        yield f"the number {number} in a list", f"[1, {number}]"
        yield f"the number {number} in an object", f'{{"x": {number}, "number": {number}}}'


def _encoded() -> Iterator[tuple[str, bytes]]:
    text = f'"{CANARY} ä"'
    for codec in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-8-sig"):
        yield codec, text.encode(codec)
    for codec in ("latin-1", "cp1252", "utf-7", "cp037", "shift_jis", "gb18030"):
        yield codec, text.encode(codec, "replace")
    wrong = (b"\xff", b"\xfe\xff", b"\x80", b"\xc0\xaf", b"\xe2\x82", b"\xed\xa0\x80", b"\xf5\x80")
    for piece in (*wrong, b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\x00"):
        yield f"the bytes {piece!r}", b'"' + CANARY.encode() + piece + b'"'
        yield f"the bytes {piece!r} before", piece + b'"' + CANARY.encode() + b'"'
        yield f"the bytes {piece!r} in a name", b'{"a' + piece + b'": "' + CANARY.encode() + b'"}'
    for escape in (b"\\ud800", b"\\udc00", b"\\udfff\\ud800", b"\\ud800\\u0041", b"\\uD83D x"):
        yield f"the lone {escape!r}", b'"' + CANARY.encode() + escape + b'"'
        yield f"the lone {escape!r} in a list", b'["' + CANARY.encode() + escape + b'"]'
        yield f"the lone {escape!r} as a name", b'{"' + escape + b'": "' + CANARY.encode() + b'"}'
    yield "gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(range(200))
    yield "pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00c" + b"os\nsystem\n."
    yield "all bytes", bytes(range(256))
    yield "PNG", b"\x89PNG\r\n\x1a\n" + bytes(100)


def _deep() -> Iterator[tuple[str, bytes]]:
    for depth in (900, 5_000, 1_000_000):
        yield f"{depth} lists", b"[" * depth + b"]" * depth
        yield f"{depth} lists left open", b"[" * depth
        yield f"{depth} brackets too many", b"[1" + b"]" * depth
    for depth in (900, 5_000, 200_000):
        yield f"{depth} objects", b'{"a":' * depth + b"1" + b"}" * depth
        yield f"{depth} objects left open", b'{"anything":' * depth
        start = b'{"name": "a", "kind": "x", "items": [], "anything": '
        yield f"{depth} lists in a field", start + b"[" * depth + b"]" * depth + b"}"


def _large() -> Iterator[tuple[str, bytes]]:
    big = (CANARY * 90_000).encode()
    yield "1 MB of text for a number", b'{"x": "' + big + b'"}'
    yield "1 MB of text in a list", b'["' + big + b'"]'
    yield "1 MB of a name", b'{"' + b"n" * 1_000_000 + b'": 1}'
    yield "1 MB without an end", b'"' + big
    yield "1 MB of escapes", b'["' + b"\\u0041" * 170_000 + b'"]'
    yield "1 MB of spaces", b" " * 1_000_000
    yield "1e5 wrong items", json.dumps([CANARY] * 100_000).encode()
    yield "1e5 lists", b"[" + b"[]," * 99_999 + b"[]]"
    yield "1e5 names", json.dumps({f"name {n}": CANARY for n in range(100_000)}).encode()
    items = {"name": CANARY, "kind": "a", "items": [{"number": CANARY}] * 60_000}
    yield "60,000 wrong items in a field", json.dumps(items).encode()
    yield "over the limit", b'"' + b"x" * MAX_BODY_BYTES + b'"'
    for n_digits in (309, 400, 4_300, 4_301, 5_000, 100_000):
        digits = b"9" * n_digits
        yield f"{n_digits} digits in a list", b"[" + digits + b"]"
        after_point = b'{"x": 0.' + digits + b', "y": "' + big[:9] + b'"}'
        yield f"{n_digits} digits after the point", after_point
        yield f"{n_digits} digits in a field", b'{"x": ' + digits + b', "y": ' + digits + b"}"
        yield f"{n_digits} digits in an exponent", b"[1e" + digits + b"]"
    for number in (b"1e400", b"-1e400", b"1E+999", b"1e308", b"123456789e301"):
        yield f"{number!r} in an object", b'{"x": ' + number + b', "label": 1}'
        yield f"{number!r} in a list", b'["' + CANARY.encode() + b'", ' + number + b"]"


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a text": CANARY,
    "an empty text": "",
    "text with controls": CANARY + "\x00\x1b[31m\x7f\u202e\u2028",
    "half": 0.5,
    "minus one": -1,
    "a large whole number": 2**70,
    "an empty list": [],
    "an empty object": {},
    "a list of a text": [CANARY],
    "a list of lists": [[CANARY]],
    "an object": {"a": CANARY},
    "an object in an object": {"a": {"b": CANARY}},
    "reserved names": {"__proto__": CANARY, "__class__": CANARY, "constructor": CANARY},
    "names of pydantic": {"model_config": CANARY, "model_fields": 1, "__init__": CANARY},
    "NaN as text": "NaN",
}
GOOD: dict[str, Any] = {
    "name": "a",
    "kind": "a",
    "items": [{"number": 1.5}],
    "either": 1,
    "limits": {"a": 1.0},
    "x": 1.5,
    "y": 2,
    "label": "l",
    "values": [0.5],
    "text": "t",
    "n": 1,
    "share": 0.25,
    "tone": "kind",
}


def _misfits() -> Iterator[tuple[str, bytes]]:
    """Right JSON that fits few schemas: each value as the whole, in a list and in each field."""
    for name, value in VALUES.items():
        yield name, json.dumps(value).encode()
        yield f"{name}, in a list", json.dumps([1, value, CANARY]).encode()
    for field in GOOD:
        for name, value in VALUES.items():
            yield f"{field} is {name}", json.dumps({**GOOD, field: value}).encode()
        without = {other: value for other, value in GOOD.items() if other != field}
        yield f"no {field}", json.dumps(without).encode()
        twice = json.dumps(GOOD)[:-1] + f', "{field}": {json.dumps(CANARY)}}}'
        yield f"{field} twice", twice.encode()


BODIES: dict[str, bytes] = {
    **{name: text.encode() for name, text in _texts()},
    **{name: body for family in (_encoded, _deep, _large, _misfits) for name, body in family()},
}
"""What is sent as JSON to every model that takes JSON; some bodies fit some schemas."""


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
    more = (CANARY, "1s", "1,5", "٣", "1;2", "1e", "--1", "1" * 5000, "é", "1e-999")
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
    names += "text. text%20 %20text TEXT text;v=1 text%2f text%3f tex%74x".split()
    names += "% %zz %2 {name} %7Bname%7D <script> '%20OR%201=1-- $(id) `id`".split()
    names.append("text ")
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
    "no value": "text",
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


def _forms() -> Iterator[tuple[str, tuple[bytes, bytes]]]:
    kind = b"Content-Type: multipart/form-data; boundary=b"
    file = b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\ndata\r\n'
    number = b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n%s\r\n'
    end = b"--b--\r\n"
    canary = CANARY.encode()
    yield "no boundary", (b"Content-Type: multipart/form-data", file + end)
    yield "an empty boundary", (b"Content-Type: multipart/form-data; boundary=", file + end)
    yield "another boundary", (kind + b"c", file + end)
    yield "a boundary of 5,000", (kind * 1 + b"x" * 5_000, file + end)
    yield "a boundary with bytes", (kind + b"\xff", file + end)
    yield "nothing", (kind, b"")
    yield "an end only", (kind, end)
    yield "no end", (kind, file[:-2])
    yield "no file", (kind, number % b"1" + end)
    yield "a wrong number", (kind, file + number % canary + end)
    yield "NaN", (kind, file + number % b"nan" + end)
    yield "many digits", (kind, file + number % (b"9" * 5_000) + end)
    yield "a number that is no UTF-8", (kind, file + number % b"\xff" + end)
    yield "two numbers", (kind, file + number % b"1" + number % b"2" + end)
    yield "two files", (kind, file + file + end)
    yield "1,000 files", (kind, file * 1_000 + end)
    yield "1,000 numbers", (kind, (number % b"1") * 1_000 + end)
    yield "text for the file", (kind, file.replace(b'; filename="f"', b"") + end)
    yield "a part without a name", (kind, file.replace(b'name="image"; ', b"") + end)
    yield "a part without a disposition", (kind, b"--b\r\n\r\n" + canary + b"\r\n" + end)
    yield "a broken header of a part", (kind, b"--b\r\n\x00\xff: " + canary + b"\r\n\r\n\r\n" + end)
    yield "a huge header of a part", (kind, b"--b\r\nX: " + b"a" * 200_000 + b"\r\n\r\n\r\n" + end)
    yield "many headers of a part", (kind, b"--b\r\n" + b"X: a\r\n" * 20_000 + b"\r\n\r\n" + end)
    yield "a huge text", (kind, file + number % (canary * 200_000) + end)
    yield "a wrong charset", (kind + b"; charset=none", file + number % b"1" + end)
    yield "a charset that is no text", (kind + b"; charset=base64", file + number % b"1" + end)
    yield "bytes only", (kind, bytes(range(256)) * 4)
    yield "JSON", (JSON, b'{"image": "' + canary + b'", "n": "' + canary + b'"}')
    yield "a plain form", (b"Content-Type: application/x-www-form-urlencoded", b"image=" + canary)
    yield "an encoding", (kind + b"\r\nContent-Encoding: gzip", file + end)
    yield "no content type", (b"X-A: b", file + end)


FORMS: dict[str, tuple[bytes, bytes]] = dict(_forms())
"""Content type and body of what is no upload, or none of all its fields."""
