"""Numbers that are not finite get in by no way, and looking for them costs next to nothing."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter
from tests.http.answers import error_of
from typing_extensions import TypedDict

from mlserve import ModelHandler, ModelServer
from mlserve.errors import InvalidJSONError, RequestError
from mlserve.http.body import parse_json

JSON = {"Content-Type": "application/json"}
HUGE = b"1" * 400


class Inner(BaseModel, extra="allow"):
    x: float = 0.0


@dataclass
class Point:
    x: float


class Row(TypedDict):
    x: float


class Outer(BaseModel):
    inner: Inner | None = None
    points: list[Point] = []
    rows: dict[str, Row] = {}
    pair: tuple[int, float] = (0, 0.0)
    anything: Any = None


NOT_FINITE = {
    "a 400-digit integer": (float, HUGE),
    "NaN as text": (float, b'"NaN"'),
    "infinity as text": (float, b'"-inf"'),
    "a large number as text": (float, b'"1e400"'),
    "many digits and an exponent": (float, b"1" * 250 + b"e99"),
    "an escaped name": (float, b'"\\u006ean"'),
    "in a list": (list[float], b"[1, 2, 1e400]"),
    "in a mixed list": (list[float | str | None], b'["a", null, 1e400]'),
    "in a model": (Outer, b'{"inner": {"x": "nan"}}'),
    "in a field that is not declared": (Outer, b'{"inner": {"y": 1e400}}'),
    "in a dataclass": (Outer, b'{"points": [{"x": "inf"}]}'),
    "in a typed dict": (Outer, b'{"rows": {"a": {"x": "inf"}}}'),
    "in a tuple": (Outer, b'{"pair": [1, "inf"]}'),
    "in a value of any type": (Outer, b'{"anything": [{"a": 1e400}]}'),
    "in a dict of any values": (dict[str, Any], b'{"a": 1e400}'),
    "in a list of anything": (list, b"[1e400]"),
    "a literal where no number belongs": (str, b"NaN"),
}


@pytest.mark.parametrize(("declared", "body"), NOT_FINITE.values(), ids=NOT_FINITE)
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(
    declared: Any, body: bytes
) -> None:
    with pytest.raises(InvalidJSONError, match="not finite"):
        parse_json(TypeAdapter(declared), body)


FINITE: dict[str, tuple[Any, bytes, Any]] = {
    "the word NaN": (str, b'"NaN"', "NaN"),
    "words in a value of any type": (Any, b'["NaN", "Infinity", "1e400"]', None),
    "a whole number of 400 digits": (int, HUGE, int(HUGE)),
    "a small number": (float, b"1e-400", 0.0),
    "words beside numbers": (Outer, b'{"anything": "Infinity", "pair": [1, 2]}', None),
}


@pytest.mark.parametrize(("declared", "body", "value"), FINITE.values(), ids=FINITE)
def test_what_is_finite_or_no_number_is_taken(declared: Any, body: bytes, value: Any) -> None:
    parsed = parse_json(TypeAdapter(declared), body)

    assert value is None or parsed == value


@pytest.mark.parametrize("declared", [list[int], list[float], Any], ids=str)
def test_long_numbers_are_looked_at_in_about_the_time_of_their_parsing(declared: Any) -> None:
    body = b"[" + b",".join([b"1" * 308] * 8_000) + b"]"
    adapter: TypeAdapter[Any] = TypeAdapter(declared)

    alone_s = min(_seconds(lambda: adapter.validate_json(body)) for _ in range(3))
    whole_s = min(_seconds(lambda: parse_json(adapter, body)) for _ in range(3))

    assert whole_s < 5 * alone_s + 0.05


WORDS = st.sampled_from(["NaN", "-Infinity", 'a"NaN', "Na\\", "NI", "\\", '"', ""]) | st.text(
    max_size=3
)
VALUES = st.recursive(
    st.floats() | WORDS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.booleans())
def test_a_body_is_refused_exactly_if_it_has_a_constant_outside_all_texts(
    value: Any, ascii_only: bool
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")
    constants: list[str] = []
    json.loads(body, parse_constant=constants.append)

    try:
        parse_json(TypeAdapter(str | object), body)
    except InvalidJSONError:
        refused = True
    else:
        refused = False

    assert refused == bool(constants)


def test_the_word_nan_makes_no_large_body_dear() -> None:
    body = b'["NaN",' + b"[]," * 2_000_000 + b"0]"

    def refuse() -> None:
        with pytest.raises(RequestError):
            parse_json(TypeAdapter(list[int]), body)

    assert _seconds(refuse) < 0.4


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_a_request_that_refers_to_itself_is_taken() -> None:
    class Ring(BaseModel):
        x: float
        me: Any = None

        def model_post_init(self, context: Any) -> None:
            self.me = [self]

    assert parse_json(TypeAdapter(Ring), b'{"x": 1}').x == 1


def test_a_query_that_is_not_finite_does_not_fit_the_schema() -> None:
    class Scaled(ModelHandler[Inner, float]):
        def stream(self, item: Inner) -> Iterator[float]:
            yield item.x

    with TestClient(ModelServer().add("m", Scaled).build()) as client:
        answer = client.get("/v1/models/m/stream", params={"x": "nan"})

    error_of(answer, 422, "validation_error")
    assert answer.json()["detail"][0]["type"] == "finite_number"
