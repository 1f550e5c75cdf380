"""Requests that are no HTTP, or HTTP that two servers would read in two ways, as bytes."""

from collections.abc import Iterator

__all__ = ["MALFORMED", "POST", "VALID"]

POST = b"POST /v1/models/echo/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
BODY = b'{"text":"a"}'
VALID = POST + b"Content-Length: 12\r\n\r\n" + BODY
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /health HTTP/1.1\r\nHost: inner\r\n\r\n"


def _with_header(line: bytes) -> bytes:
    return POST + line + b"\r\nContent-Length: 12\r\n\r\n" + BODY


def _lengths() -> Iterator[tuple[str, bytes]]:
    values = ("+12", "-1", "-12", "12, 12", "12 12", "0x0c", "12.0", "1e1", "twelve", "''", "12;")
    for value in (*values, "\x0b12", "12\x00", "18446744073709551616", "9" * 400, "٣"):
        line = b"Content-Length: " + value.encode() + b"\r\n\r\n"
        yield f"content-length {value[:24]!r}", POST + line + BODY
    yield "content-length twice, equal", _with_header(b"Content-Length: 12")
    yield "content-length twice, unequal", _with_header(b"Content-Length: 1")
    yield "content-length without a value", POST + b"Content-Length:\r\n\r\n" + BODY


def _encodings() -> Iterator[tuple[str, bytes]]:
    values = ("xchunked", "chunked, identity", "identity", "gzip", "gzip, chunked", "chunked;q=1")
    for value in (*values, "chunked, chunked", "\x0bchunked", "chunked\x00", "'chunked'", "cow"):
        line = b"Transfer-Encoding: " + value.encode() + b"\r\n\r\n0\r\n\r\n"
        yield f"transfer-encoding {value!r}", POST + line + SMUGGLED
    twice = b"Transfer-Encoding: chunked\r\n" * 2
    yield "transfer-encoding twice", POST + twice + b"\r\n0\r\n\r\n"
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    yield "CL.TE", POST + both + SMUGGLED
    lines = both.split(b"\r\n")
    yield "TE.CL", POST + b"\r\n".join([lines[1], lines[0], *lines[2:]]) + SMUGGLED
    yield "TE.TE", POST + b"Transfer-Encoding: cow\r\n" + both + SMUGGLED
    yield "TE in HTTP/1.0", CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n"
    space = b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"
    yield "TE with a space before the colon", POST + space + SMUGGLED
    folded = b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"
    yield "TE folded", POST + b"Content-Length: 5\r\n" + folded + SMUGGLED


def _header_lines() -> Iterator[tuple[str, bytes]]:
    names = (b"", b" X", b"X ", b"X\t", b"X Y", b"X\x00", b"X\x7f", b"X(", b"X@", b"X[", b"X\\")
    for name in (*names, b'X"', b"X,", b"X;", b"X{", b"X\x80", "Ünicode".encode()):
        yield f"header name {name!r}", _with_header(name + b": a")
    for value in (b"a\x00b", b"a\rb", b"a\nX-B: b", b"a\x01b", b"a\x7fb", b"a\r\n folded", b"\x08"):
        yield f"header value {value!r}", _with_header(b"X-A: " + value)
    yield "header without a colon", _with_header(b"X-A")
    yield "header lines ended by LF", VALID.replace(b"\r\n", b"\n")
    yield "one header line ended by LF", VALID.replace(b"test\r\n", b"test\n")
    yield "header lines ended by CR", VALID.replace(b"\r\n", b"\r")
    yield "space before the first header", VALID.replace(b"Host", b" Host", 1)


def _hosts() -> Iterator[tuple[str, bytes]]:
    yield "no host", b"GET /health HTTP/1.1\r\n\r\n"
    yield "two hosts", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
    yield "the same host twice", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"


def _first_lines() -> Iterator[tuple[str, bytes]]:
    methods = ("get", "Get", "BREW", "G ET", "GET\x00", "\x00GET", "GÉT", "GET:", "<GET>", "G\tET")
    for method in (*methods, "PRI", "A" * 300):
        line = f"{method} /health HTTP/1.1\r\nHost: test\r\n\r\n"
        yield f"method {method[:10]!r}", line.encode()
    versions = ("HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/9.9", "HTTP/1", "HTTP/1.1.1", "HTTP/11")
    others = "HTTP/-1.1,HTTP/1.١,http/1.1,HTTP 1.1,HTTPS/1.1,ICAP/1.0,HTTP/,x".split(",")
    for version in (*versions, *others):
        line = f"GET /health {version}\r\nHost: test\r\n\r\n"
        yield f"version {version!r}", line.encode()
    targets = ("/a b", "/\x00", "/\x01", "/\x7f", "health", "http//x", "://", "/a\tb", "é", "")
    for target in targets:
        line = f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"
        yield f"target {target!r}", line.encode()
    yield "first line ended by LF", b"GET /health HTTP/1.1\nHost: test\r\n\r\n"
    yield "first line ended by CR", b"GET /health HTTP/1.1\rHost: test\r\n\r\n"
    yield "space before the method", b" GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
    yield "CONNECT", b"CONNECT inner:443 HTTP/1.1\r\nHost: test\r\n\r\n"


def _chunks() -> Iterator[tuple[str, bytes]]:
    sizes = (b"", b"zz", b"-1", b"+c", b"0x0c", b"c c", b"c\x00", b"f" * 17, b"c,", b"\xff", b"1_2")
    for size in sizes:
        yield f"chunk size {size!r}", CHUNKED + size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
    yield "chunk longer than said", CHUNKED + b"5\r\n" + BODY + b"\r\n0\r\n\r\n"
    yield "chunk without CRLF", CHUNKED + b"c\r\n" + BODY + b"0\r\n\r\n"
    yield "chunk ended by LF", CHUNKED + b"c\r\n" + BODY + b"\n0\r\n\r\n"
    yield "chunk size ended by LF", CHUNKED + b"c\n" + BODY + b"\r\n0\r\n\r\n"
    yield "chunk size ended by CR", CHUNKED + b"c\r" + BODY + b"\r\n0\r\n\r\n"
    yield "trailer without a colon", CHUNKED + b"c\r\n" + BODY + b"\r\n0\r\nX\r\n\r\n"


def _bombs() -> Iterator[tuple[str, bytes]]:
    yield "one huge header", POST + b"X: " + b"a" * 300_000
    yield "one huge header name", POST + b"X" * 300_000
    yield "many headers", POST + b"a: b\r\n" * 20_000 + b"\r\n"
    yield "huge target", b"GET /" + b"a" * 300_000
    yield "huge method", b"GET" * 100_000
    yield "huge trailers", CHUNKED + b"c\r\n" + BODY + b"\r\n0\r\n" + b"X: 1\r\n" * 20_000 + b"\r\n"
    yield "endless trailer", CHUNKED + b"c\r\n" + BODY + b"\r\n0\r\nX: " + b"a" * 300_000
    yield "endless chunk extension", CHUNKED + b"c;" + b"a" * 300_000
    yield "many chunks", CHUNKED + b"1\r\n \r\n" * 70_000 + b"0\r\n\r\n"


def _strangers() -> Iterator[tuple[str, bytes]]:
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
    yield "SSH", b"SSH-2.0-OpenSSH_9.6\r\n"
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
    yield "redis", b"*1\r\n$4\r\nPING\r\n"
    yield "SMTP", b"EHLO example.org\r\n"
    yield "socks", b"\x05\x01\x00"
    yield "zeros", bytes(4096)
    yield "random bytes", bytes(range(128, 256)) * 8
    yield "JSON alone", b'{"text": "a"}\r\n\r\n'
    yield "an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


MALFORMED: dict[str, bytes] = {
    name: data
    for family in (
        _lengths,
        _encodings,
        _header_lines,
        _hosts,
        _first_lines,
        _chunks,
        _bombs,
        _strangers,
    )
    for name, data in family()
}
"""By what is wrong with them."""
