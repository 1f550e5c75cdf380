"""Random inputs of any kind: an error answer at most, and never one of the server's own."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.http.bad_bodies import FORMS, GOOD, ODD
from tests.http.bad_models import ADAPTERS, HEALTHY, JSON, path_of, server_of_all
from tests.http.failures import Failures
from tests.http.mutations import MUTATIONS, ask_all, mutate
from tests.http.wire import (
    REDIRECT,
    TAKEN_OR_REFUSED,
    TALLY,
    Line,
    complaint_of,
    request_of,
)

from mlserve.testing import running

pytestmark = pytest.mark.slow

MODELS = st.sampled_from(sorted(ADAPTERS))
PATIENCE_S = 1.0
CANARY = "canary-0815"
law = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def line(failures: Failures) -> Iterator[Line]:
    with running(server_of_all()) as client, Line(client, HEALTHY) as line:
        yield line


@pytest.fixture(scope="module")
def client(failures: Failures) -> Iterator[httpx2.Client]:
    """Of a server that does not wait long for what never comes."""
    with running(server_of_all(PATIENCE_S)) as client:
        yield client


def require_fine(line: Line, failures: Failures, requests: list[bytes]) -> None:
    complaints = {request: line.complaint(request, canary=CANARY) for request in requests}

    assert {request: found for request, found in complaints.items() if found} == {}
    assert failures.seen() == []


def several(inputs: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Draw many at a time: it costs more to draw an example than to send it."""
    return st.lists(inputs, min_size=5, max_size=20)


JSON_BYTES = st.text('[]{}",:-+.eE0129 \\u/ntfalsrun\n\x00ä').map(str.encode)


@given(MODELS, several(st.binary(max_size=200) | JSON_BYTES))
@law
def test_random_bytes_as_json(
    line: Line, failures: Failures, model: str, bodies: list[bytes]
) -> None:
    require_fine(
        line, failures, [request_of("POST", path_of(model), body, JSON) for body in bodies]
    )


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()  # NaN and infinity are written as Python does, which is no JSON
    | st.text(max_size=20)
    | st.sampled_from([*ODD, CANARY, *GOOD.values()])
)
NAMES = st.sampled_from([*GOOD, "number", "size"]) | st.text(max_size=5)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=12,
)
ALMOST_GOOD = st.dictionaries(st.sampled_from([*GOOD]), VALUES, max_size=2).map(
    lambda changed: GOOD | changed
)


@given(MODELS, several(VALUES | ALMOST_GOOD))
@law
def test_random_values_for_random_types(
    line: Line, failures: Failures, model: str, values: list[Any]
) -> None:
    bodies = [json.dumps(value).encode() for value in values]

    require_fine(
        line, failures, [request_of("POST", path_of(model), body, JSON) for body in bodies]
    )


HEADER_NAMES = st.sampled_from(
    "Accept Accept-Encoding Authorization Content-Encoding Content-Type Cookie Forwarded"
    " If-None-Match Origin Range Referer Traceparent User-Agent X-Forwarded-For X-Request-Id"
    " X-Request-Priority X-Request-Timeout X-Http-Method-Override".split()
).map(str.encode)
HEADER_BYTES = st.lists(
    st.sampled_from([*range(0x20, 0x7F), *range(0x80, 0x100), 0x09]), max_size=40
).map(bytes)
TELLING = st.sampled_from(
    b"json;charset=;multipart/form-data;1e5;-0;nan;*/*;q=;Bearer ".split(b";")
)
HEADERS = st.tuples(HEADER_NAMES, st.lists(HEADER_BYTES | TELLING, max_size=3).map(b"".join))


@given(several(st.lists(HEADERS, min_size=1, max_size=4)))
@law
def test_random_headers(
    line: Line, failures: Failures, heads: list[list[tuple[bytes, bytes]]]
) -> None:
    lines = [[b"%s: %s" % header for header in head] for head in heads]

    require_fine(
        line,
        failures,
        [request_of("POST", path_of("text"), b'"a"', *given_lines, JSON) for given_lines in lines],
    )


PIECES = st.sampled_from(
    "v1 v2 v99 models text ask photo predict stream / // .. . %2e %2f %00 %ff ? # & = ; : @ * ~"
    " health ready docs openapi.json playground metrics a A ü".split()
).map(lambda piece: quote(piece, safe="/%?#&=;:@*~"))
TARGETS = st.lists(PIECES | st.just("/"), max_size=10).map("".join)


@given(st.sampled_from("GET POST PUT DELETE OPTIONS PATCH TRACE".split()), several(TARGETS))
@law
def test_random_targets(line: Line, failures: Failures, method: str, targets: list[str]) -> None:
    require_fine(
        line, failures, [request_of(method, f"/{target}", b"1", JSON) for target in targets]
    )


FIELDS = st.sampled_from("text n share tone x".split()) | st.text(max_size=5)
QUERIES = st.lists(st.tuples(FIELDS, st.text(max_size=10) | st.sampled_from(ODD)), max_size=6)


@given(several(QUERIES))
@law
def test_random_query_strings(
    line: Line, failures: Failures, queries: list[list[tuple[str, str]]]
) -> None:
    written = ["&".join(f"{quote(k)}={quote(v)}" for k, v in query) for query in queries]

    require_fine(
        line, failures, [request_of("GET", f"{path_of('ask')}?{query}") for query in written]
    )


SMALL_FORMS = st.sampled_from([form for form in FORMS.values() if len(form[1]) < 2_000])


@given(st.sampled_from(["photo", "raw"]), several(st.tuples(SMALL_FORMS, MUTATIONS)))
@law
def test_mutated_forms(
    line: Line, failures: Failures, model: str, forms: list[tuple[tuple[bytes, bytes], Any]]
) -> None:
    require_fine(
        line,
        failures,
        [
            request_of("POST", path_of(model), mutate(body, mutations), kind)
            for (kind, body), mutations in forms
        ],
    )


SEEDS = [
    HEALTHY,
    request_of("GET", "/v1/models"),
    request_of("GET", f"{path_of('ask')}?text=a&n=2"),
    request_of("POST", path_of("order"), json.dumps(GOOD).encode(), JSON),
    request_of("POST", path_of("ask"), json.dumps(GOOD).encode(), JSON, b"X-Request-Timeout: 5"),
    request_of("POST", path_of("text"), b"", JSON, b"Transfer-Encoding: chunked", length=False)
    + b'3\r\n"he\r\n4;x=y\r\nllo"\r\n0\r\nX-Trailer: 1\r\n\r\n',
    request_of("POST", path_of("photo"), FORMS["a wrong number"][1], FORMS["a wrong number"][0]),
]


ANSWERED = TAKEN_OR_REFUSED | {REDIRECT}
BROKEN = st.tuples(st.integers(0, 2), st.sampled_from(SEEDS), MUTATIONS.filter(bool))


@given(st.lists(BROKEN, min_size=20, max_size=40))
@law
def test_mutated_requests_behind_healthy_ones(
    client: httpx2.Client, failures: Failures, drawn: list[tuple[int, bytes, Any]]
) -> None:
    broken = [(n_before, mutate(seed, mutations)) for n_before, seed, mutations in drawn]
    asked = ask_all(client, [HEALTHY * n_before + request for n_before, request in broken])
    complaints = {}
    for (n_before, request), answers in zip(broken, asked, strict=True):
        healthy, others = answers[:n_before], answers[n_before:]
        for answer in others[:1]:
            TALLY.count(request, answer.status, len(answer.body))
        found = [complaint_of(answer, ANSWERED) for answer in others]
        if any(found) or [answer.status for answer in healthy] != [200] * n_before:
            complaints[request] = n_before, found, healthy

    assert complaints == {}
    assert failures.seen() == []
    assert client.get("/health").status_code == 200
