"""Large bodies are validated as small ones are, but for their wrong items nobody pays."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mlserve.errors import SchemaViolationError
from mlserve.http.body import parse_json
from mlserve.http.fail_fast import fail_fast_validator

MANY = 400_000


class Item(BaseModel):
    number: float


class Tree(BaseModel):
    children: list["Tree"] = []


@dataclass
class Point:
    x: float


class Row(TypedDict):
    values: list[int]


class Cat(BaseModel):
    type: Literal["cat"]
    lives: list[int]


class Dog(BaseModel):
    type: Literal["dog"]
    tricks: dict[str, int] = {"type": 1}


Pet = Annotated[Cat | Dog, Field(discriminator="type")]


class Order(BaseModel):
    items: list[Item] = []
    default: dict[str, Any] = {"type": "list"}
    pair: tuple[int, str] = (0, "")


WRONG: dict[str, tuple[Any, bytes]] = {
    "numbers": (list[int], b"[],"),
    "models": (list[Item], b"{},"),
    "dataclasses": (list[Point], b"{},"),
    "rows": (list[Row], b"{},"),
    "unions": (list[int | list[float] | bool | Item], b"{},"),
    "pets": (list[Pet], b"{},"),
    "sets": (set[int], b"[],"),
    "tuples": (tuple[int, ...], b"[],"),
    "a tree": (list[Tree], b"[],"),
    "lists of numbers": (list[list[float]], b'["a"],'),
}


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < seconds


@pytest.mark.parametrize(("declared", "item"), WRONG.values(), ids=WRONG)
def test_a_large_body_is_refused_at_its_first_wrong_item(declared: Any, item: bytes) -> None:
    body = b"[" + item * MANY + item[:-1] + b"]"
    adapter: TypeAdapter[Any] = TypeAdapter(declared)

    with at_most(0.5), pytest.raises(SchemaViolationError) as caught:
        parse_json(adapter, body)

    assert caught.value.n_errors <= 10
    assert caught.value.details[0]["loc"][:2] == ["body", 0]  # type: ignore[index]  # a list


def test_a_large_object_of_wrong_values_is_refused_at_the_first() -> None:
    body = b"{" + b",".join(b'"%d":[]' % n for n in range(100_000)) + b"}"

    with pytest.raises(SchemaViolationError) as caught:
        parse_json(TypeAdapter(dict[str, float]), body)

    assert caught.value.n_errors == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("ab"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["items", "number", "children", "x", "values", "type", "lives", "tricks", "pair"]
            ),
            inner | st.sampled_from(["cat", "dog"]),
            max_size=4,
        )
    ),
    max_leaves=8,
)
TYPES: list[Any] = [
    Order,
    Tree,
    Point,
    Row,
    list[Pet],
    list[Item] | dict[str, Point],
    Any,
    set[int],
]
ADAPTERS: list[TypeAdapter[Any]] = [TypeAdapter(declared) for declared in TYPES]


def outcome_of(validator: Any, value: Any) -> Any:
    """Give the validated value, or the first error."""
    try:
        return validator.validate_python(value)
    except ValidationError as exc:
        return exc.errors(include_url=False)[0]


@given(st.sampled_from(ADAPTERS), VALUES)
def test_stopping_early_changes_neither_what_is_taken_nor_what_it_becomes(
    adapter: TypeAdapter[Any], value: Any
) -> None:
    quick = fail_fast_validator(adapter)

    assert outcome_of(quick, value) == outcome_of(adapter, value)


def test_defaults_that_look_like_schemas_stay_as_they_are() -> None:
    validator = fail_fast_validator(TypeAdapter(Order))

    assert validator.validate_json(b"{}").default == {"type": "list"}


def test_a_validator_is_made_once() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(list[int])

    assert fail_fast_validator(adapter) is fail_fast_validator(adapter)
