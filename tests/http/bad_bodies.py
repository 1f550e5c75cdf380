"""Bodies by what is wrong with them: what is no JSON, what fits no schema, what is no form."""

import json
from collections.abc import Iterator
from typing import Any

from tests.http.bad_models import JSON, MAX_BODY_BYTES
from tests.http.wire import CANARY

__all__ = ["BODIES", "FORMS", "GOOD", "VALUES", "is_json"]


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
TYPED: dict[str, Any] = {
    "at": "2024-02-29T12:00:00Z",
    "took": "PT1M",
    "price": "1.5",
    "id": "12345678-1234-5678-1234-567812345678",
    "url": "https://example.org/",
    "letter": "a",
    "raw": "r",
    "pair": [1, "a"],
    "numbers": [1.5],
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
    **TYPED,
}
"""Fits most of the models' types."""
ODD = (
    "0000-00-00 9999-12-31T23:59:60Z -1-01-01 2024-01-01T00:00:00+99:99 24:00 1e20 253402300800"
    " P99999999999999999D -P9999999DT9999H PT1e400S 1e400 1e999999999 sNaN -inf 1_000 1/3 0x10 ½"
    " http:// http://[::1 http://a:99999/ // xn-- javascript:x urn:uuid: {} 10GB \x00 == ١٢٣"
).split()
"""Texts that parsers of dates, numbers and addresses may stumble over."""


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
    for field in TYPED:
        for text in (*ODD, "9" * 5_000, f"http://{CANARY * 7_000}", "a" * 70_000):
            yield f"{field} is {text[:40]!r}", json.dumps({**GOOD, field: text}).encode()


def _telling() -> Iterator[tuple[str, bytes]]:
    """What there is much to say about: the answer must stay small."""
    for n in (9, 11, 300, 9_999):
        yield f"{n} wrong items", json.dumps({**GOOD, "items": [{"number": CANARY}] * n}).encode()
        yield f"{n} wrong values", json.dumps({str(n): CANARY for n in range(n)}).encode()
        yield f"{n} wrong numbers", json.dumps([CANARY] * n).encode()
    for name, part in (("long", "n" * 5_000), ("emoji", "\U0001f600" * 300), ("NUL", "\0" * 300)):
        yield f"{name} names", json.dumps({f"{n}{part}": CANARY for n in range(30)}).encode()
        deep: Any = CANARY
        for n in range(60):
            deep = {"limits": {f"{part}{n}": deep}} if n % 2 else {"limits": {part: deep}}
        yield f"{name} names, deep", json.dumps(deep).encode()
        lists = {"items": [{"limits": {part: {"items": [{part: CANARY}]}}}] * 20}
        yield f"{name} names in lists", json.dumps(lists).encode()


BODIES: dict[str, bytes] = {
    **{name: text.encode() for name, text in _texts()},
    **{
        name: body
        for family in (_encoded, _deep, _large, _misfits, _telling)
        for name, body in family()
    },
}
"""What is sent as JSON to every model that takes JSON; some bodies fit some schemas."""


def is_json(body: bytes) -> bool:
    """Say what RFC 8259 has of a body, as Python's own parser reads it."""

    def refuse(literal: str) -> float:
        raise ValueError(literal)

    try:
        text = body.decode()
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates cannot be encoded
    except RecursionError:
        return True  # as far as one can see
    except ValueError:
        return False
    return True


KIND = b"Content-Type: multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\ndata\r\n'
NUMBER = b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n%s\r\n'
END = b"--b--\r\n"


def _boundaries() -> Iterator[tuple[str, tuple[bytes, bytes]]]:
    canary = CANARY.encode()
    yield "no boundary", (b"Content-Type: multipart/form-data", FILE + END)
    yield "an empty boundary", (b"Content-Type: multipart/form-data; boundary=", FILE + END)
    yield "another boundary", (KIND + b"c", FILE + END)
    yield "a boundary of 5,000", (KIND + b"x" * 5_000, FILE + END)
    yield "a boundary with bytes", (KIND + b"\xff", FILE + END)
    yield "nothing", (KIND, b"")
    yield "an end only", (KIND, END)
    yield "no end", (KIND, FILE[:-2])
    yield "boundaries only", (KIND, b"--b\r\n" * 10_000)
    yield "lines ended by LF", (KIND, (FILE + END).replace(b"\r\n", b"\n"))
    yield "much before the first part", (KIND, canary * 50_000 + b"\r\n" + FILE + END)
    yield "much after the end", (KIND, NUMBER % b"1" + END + canary * 50_000)
    yield "a wrong charset", (KIND + b"; charset=none", FILE + NUMBER % b"1" + END)
    yield "a charset that is no text", (KIND + b"; charset=base64", FILE + NUMBER % b"1" + END)
    yield "bytes only", (KIND, bytes(range(256)) * 4)
    yield "JSON", (JSON, b'{"image": "' + canary + b'", "n": "' + canary + b'"}')
    yield "a plain form", (b"Content-Type: application/x-www-form-urlencoded", b"image=" + canary)
    yield "an encoding", (KIND + b"\r\nContent-Encoding: gzip", FILE + END)
    yield "no content type", (b"X-A: b", FILE + END)


def _parts() -> Iterator[tuple[str, tuple[bytes, bytes]]]:
    canary = CANARY.encode()
    bodies = {
        "no file": NUMBER % b"1",
        "a wrong number": FILE + NUMBER % canary,
        "NaN": FILE + NUMBER % b"nan",
        "many digits": FILE + NUMBER % (b"9" * 5_000),
        "a number that is no UTF-8": FILE + NUMBER % b"\xff",
        "two numbers": FILE + NUMBER % b"1" + NUMBER % b"2",
        "two files": FILE + FILE,
        "1,000 files": FILE * 1_000,
        "1,000 numbers": (NUMBER % b"1") * 1_000,
        "text for the file": FILE.replace(b'; filename="f"', b""),
        "a part without a name": FILE.replace(b'name="image"; ', b""),
        "a part without a disposition": b"--b\r\n\r\n" + canary + b"\r\n",
        "a broken header of a part": b"--b\r\n\x00\xff: " + canary + b"\r\n\r\n\r\n",
        "a huge header of a part": b"--b\r\nX: " + b"a" * 200_000 + b"\r\n\r\n\r\n",
        "many headers of a part": b"--b\r\n" + b"X: a\r\n" * 20_000 + b"\r\n\r\n",
        "a huge text": FILE + NUMBER % (canary * 200_000),
    }
    names = (b"name*=utf-8''image", b'name="image', b"name=", b"name=\xff", b'NAME="image"')
    dispositions = [b"form-data; " + name for name in names]
    for said in (*dispositions, b"attachment", b"form-data", b"", b";;;", b'form-data; filename="'):
        part = b"--b\r\nContent-Disposition: " + said + b"\r\n\r\n"
        bodies[f"the disposition {said!r}"] = part + canary + b"\r\n"
    for name, body in bodies.items():
        yield name, (KIND, body + END)


FORMS: dict[str, tuple[bytes, bytes]] = dict([*_boundaries(), *_parts()])
"""Content type and body of what is no upload, or none of all its fields."""
