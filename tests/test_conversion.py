"""From what a handler returns to what its response type declares, and on to JSON."""

import dataclasses
import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel, computed_field, field_serializer
from tests.strategies import json_values
from typing_extensions import TypedDict

from mlserve.conversion import OutputType, adapter_of, to_plain
from mlserve.errors import ConfigurationError, ModelOutputError
from mlserve.payloads import Binary


class Verdict(BaseModel):
    label: str
    scores: list[float] = []


@dataclass
class Point:
    x: float
    weights: list[float] = dataclasses.field(default_factory=list)


class Score(TypedDict):
    score: float


class Pair(NamedTuple):
    left: int
    right: list[float]


@st.composite
def arrays(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw a numpy or torch value together with the Python value that it stands for."""
    is_whole = draw(st.booleans())
    number = st.integers(-1000, 1000) if is_whole else st.floats(-1e6, 1e6, width=32)
    plain: Any = draw(
        number
        | st.lists(number, min_size=1, max_size=4)
        | st.lists(st.lists(number, min_size=2, max_size=2), min_size=1, max_size=3)
    )
    kinds: list[Any] = [
        lambda: np.array(plain, dtype=np.int64 if is_whole else np.float32),
        lambda: torch.tensor(plain, dtype=torch.int64 if is_whole else torch.float32),
    ]
    return draw(st.sampled_from(kinds))(), plain


def nested(leaves: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Draw structures of pairs, as the pair of both structures."""
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda xs: ([x for x, _ in xs], [y for _, y in xs]))
            | st.lists(inner, max_size=3).map(
                lambda xs: (tuple(x for x, _ in xs), tuple(y for _, y in xs))
            )
            | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(
                lambda d: ({k: x for k, (x, _) in d.items()}, {k: y for k, (_, y) in d.items()})
            )
        ),
        max_leaves=6,
    )


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return type(value) in (int, float, str, bool, type(None))


@given(nested(arrays()))
def test_numpy_and_torch_values_become_plain_at_any_depth_and_keep_their_value(
    pair: tuple[Any, Any],
) -> None:
    value, plain = pair

    converted = to_plain(value)

    assert is_plain(converted)
    assert converted == plain


@given(nested(arrays()))
def test_what_is_written_as_json_is_what_was_given(pair: tuple[Any, Any]) -> None:
    value, plain = pair
    output = OutputType(Any, "response")

    assert json.loads(output.encode(output.accept(value))) == json.loads(json.dumps(plain))


@given(json_values())
def test_plain_values_stay_as_they_are(value: Any) -> None:
    assert to_plain(value) == value


@given(json_values())
def test_converting_twice_changes_nothing_more(value: Any) -> None:
    once = to_plain(value)

    assert to_plain(once) == once


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(3), 3),
        (np.array(["a", "b"]), ["a", "b"]),
        (torch.tensor(2.5, requires_grad=True), 2.5),
        (torch.tensor([1.5], dtype=torch.bfloat16), [1.5]),
        (np.array([np.array([1.0]), {"a": np.int64(1)}], dtype=object), [[1.0], {"a": 1}]),
        ({np.int64(1): np.float32(2.0)}, {1: 2.0}),
        ({(1, "a"): np.float32(2.0)}, {(1, "a"): 2.0}),
        (OrderedDict(a=np.int64(1)), {"a": 1}),
        (Pair(1, [np.float32(2.0)]), Pair(1, [2.0])),  # type: ignore[list-item]
        (Point(np.float32(0.5), [np.float32(2.0)]), Point(0.5, [2.0])),  # type: ignore[arg-type, list-item]
        ([Point(0.5, np.array([2.0]))], [Point(0.5, [2.0])]),  # type: ignore[arg-type]
        ((np.int64(1), 2), (1, 2)),
        (b"bytes", b"bytes"),
        (np.float64, np.float64),
    ],
    ids=repr,
)
def test_a_value_becomes_plain(value: Any, plain: Any) -> None:
    converted = to_plain(value)

    assert converted == plain
    assert repr(converted) == repr(plain)


def test_a_dataclass_that_holds_plain_values_is_kept_itself() -> None:
    point = Point(0.5, [1.0])
    given_to_it = Point(np.float32(0.5))  # type: ignore[arg-type]  # as handlers do

    to_plain(given_to_it)

    assert to_plain(point) is point
    assert isinstance(given_to_it.x, np.float32)


def test_an_instance_of_the_declared_model_is_taken_as_it_is() -> None:
    verdict = Verdict(label="good")

    assert OutputType(Verdict, "response").accept(verdict) is verdict


def test_a_dataclass_with_numpy_values_can_be_written() -> None:
    output = OutputType(Point, "response")

    accepted = output.accept(Point(np.float32(0.5), np.array([1.0, 2.0])))  # type: ignore[arg-type]

    assert output.encode(accepted) == b'{"x":0.5,"weights":[1.0,2.0]}'


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (Verdict, {"label": "good", "scores": [1], "secret": "s"}),
        (Verdict, {"label": "good", "scores": np.array([1.0]), "secret": object()}),
        (Point, {"x": 1, "weights": [1], "secret": "s"}),
        (Score, {"score": 1, "secret": "s"}),
        (list[Verdict], [{"label": "good", "secret": "s"}]),
        (dict[str, Point], {"a": {"x": 1, "secret": "s"}}),
    ],
)
def test_fields_that_are_not_declared_are_dropped(declared: Any, value: Any) -> None:
    output = OutputType(declared, "response")

    encoded = output.encode(output.accept(value))

    assert b"secret" not in encoded
    assert b"1.0" in encoded or b"good" in encoded


class SecretVerdict(Verdict):
    secret: int = 1


@dataclass
class SecretPoint(Point):
    secret: int = 1


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (Verdict, SecretVerdict(label="good")),
        (list[Verdict], [SecretVerdict(label="good")]),
        (Point, SecretPoint(1.0)),
        (list[Point], [SecretPoint(1.0)]),
    ],
)
def test_an_instance_of_a_subclass_is_written_by_the_declared_type(
    declared: Any, value: Any
) -> None:
    output = OutputType(declared, "response")

    assert b"secret" not in output.encode(output.accept(value))


def test_an_object_with_the_declared_attributes_is_taken() -> None:
    class Row:
        label = "good"
        scores = (1.0,)

    assert OutputType(Verdict, "response").accept(Row()) == Verdict(label="good", scores=[1.0])


def test_fields_are_written_under_their_aliases() -> None:
    class Aliased(BaseModel):
        label: str = Field(alias="theLabel")

    output = OutputType(Aliased, "response")

    assert output.encode(output.accept({"theLabel": "good"})) == b'{"theLabel":"good"}'


@pytest.mark.parametrize(
    ("declared", "value", "where"),
    [
        (Verdict, {"label": "good", "scores": ["SECRET"]}, "scores.0"),
        (Verdict, {"scores": []}, "label"),
        (Point, {"x": "SECRET"}, "x"),
        (Score, {"score": ["SECRET"]}, "score"),
        (float, "SECRET", "the value itself"),
        (dict[str, float], {"a": "SECRET"}, "a"),
    ],
)
def test_a_message_names_the_field_and_never_its_value(
    declared: Any, value: Any, where: str
) -> None:
    output = OutputType(declared, "response")

    with pytest.raises(ModelOutputError) as caught:
        output.accept(value)

    message = str(caught.value)
    assert f"(at {where}: " in message
    assert f"its response type `{output.name}`" in message
    assert "SECRET" not in message


def test_a_message_never_holds_a_tag_that_is_not_known() -> None:
    class Cat(BaseModel):
        kind: Literal["cat"]

    class Dog(BaseModel):
        kind: Literal["dog"]

    output = OutputType(Annotated[Cat | Dog, Field(discriminator="kind")], "response")

    with pytest.raises(ModelOutputError) as caught:
        output.accept({"kind": "SECRET"})

    assert "SECRET" not in str(caught.value)


class Measured(BaseModel):
    value: float

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's documentation has it
    @property
    def inverse(self) -> float:
        return math.inf if self.value == 0 else 1 / self.value


class Iterable(RootModel[list[float]]):
    """A root model that is iterated as its root, in the way of pydantic's documentation."""

    def __iter__(self) -> Any:
        return iter(self.root)


class Loose(BaseModel, extra="allow"):
    pass


class Sent(BaseModel):
    """A model whose NaN never reaches the JSON."""

    value: float
    hidden: float = Field(default=math.nan, exclude=True)

    @field_serializer("value")
    def _write(self, value: float) -> float | None:
        return None if math.isnan(value) else value


NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (float, lambda x: x),
        (float, np.float32),
        (list[float], lambda x: [0.0, x]),
        (list[float], lambda x: np.array([0.0, x])),
        (tuple[float, ...], lambda x: (0.0, x)),
        (set[float], lambda x: {0.0, x}),
        (frozenset[float], lambda x: frozenset({x})),
        (dict[str, list[float]], lambda x: {"a": [x]}),
        (dict[str, list[float]], lambda x: {"a": torch.tensor([x])}),
        (Verdict, lambda x: Verdict(label="a", scores=[x])),
        (list[Verdict], lambda x: [Verdict(label="a", scores=[x])]),
        (Point, lambda x: Point(0.0, [x])),
        (Point, lambda x: Point(np.float32(x))),  # type: ignore[arg-type]
        (dict[str, Point], lambda x: {"a": Point(x)}),
        (Score, lambda x: {"score": x}),
        (Pair, lambda x: Pair(1, [x])),
        (Any, lambda x: {"a": [{"b": x}]}),
        (Measured, lambda x: Measured(value=0.0)),
        (Iterable, lambda x: Iterable([x])),
        (Loose, lambda x: Loose(extra=[x])),  # type: ignore[call-arg]
        (Verdict | None, lambda x: Verdict(label="a", scores=[x])),
    ],
)
def test_nan_and_infinity_are_found_wherever_they_are(
    declared: Any, value: Any, bad: float
) -> None:
    output = OutputType(declared, "response")
    accepted = output.accept(value(bad))

    with pytest.raises(ModelOutputError, match="NaN or infinity"):
        output.encode(accepted)


def test_nan_that_was_set_later_as_numpy_value_is_found() -> None:
    class Late(BaseModel):
        score: float

    late = Late(score=1.0)
    late.score = np.float32("nan")  # type: ignore[assignment]  # models check on creation only
    output = OutputType(Late, "response")

    with pytest.raises(ModelOutputError, match="NaN or infinity"):
        output.encode(output.accept(late))


@pytest.mark.parametrize(
    ("declared", "value", "encoded"),
    [
        (float | None, None, b"null"),
        (list[float | None], [None, 1.5], b"[null,1.5]"),
        (Any, {"a": None}, b'{"a":null}'),
        (str, "null NaN Infinity", b'"null NaN Infinity"'),
        (list[Any], [None, "NaN", {"Infinity": {1}}], b'[null,"NaN",{"Infinity":[1]}]'),
        (Verdict | None, None, b"null"),
        (dict[str, Point | None], {"null": Point(1.0)}, b'{"null":{"x":1.0,"weights":[]}}'),
        (Sent, Sent(value=math.nan), b'{"value":null}'),
    ],
)
def test_none_and_texts_that_look_like_nan_are_allowed(
    declared: Any, value: Any, encoded: bytes
) -> None:
    output = OutputType(declared, "response")

    assert output.encode(output.accept(value)) == encoded


def test_what_cannot_be_written_as_json_is_refused_without_its_value() -> None:
    output = OutputType(Any, "chunk")

    with pytest.raises(ModelOutputError, match="cannot be written as JSON of its chunk type") as e:
        output.encode(object())

    assert "object at" not in str(e.value)


def test_a_declared_instance_with_values_of_other_types_is_refused_when_written() -> None:
    output = OutputType(Verdict, "response")

    with pytest.raises(ModelOutputError, match="cannot be written"):
        output.encode(output.accept(Verdict.model_construct(label=5)))


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(ModelOutputError, match="cannot be written"):
        OutputType(Any, "response").encode(endless)


def test_a_binary_is_known_as_such_and_taken_as_it_is() -> None:
    output = OutputType(Binary, "response")
    image = Binary(b"GIF89a", "image/gif")

    assert output.is_binary
    assert output.accept(image) is image
    assert not OutputType(Verdict, "response").is_binary


@pytest.mark.parametrize(
    ("declared", "name"), [(Verdict, "Verdict"), (list[int], "list"), (int | None, "int | None")]
)
def test_a_type_has_a_name_for_messages(declared: Any, name: str) -> None:
    assert OutputType(declared, "response").name == name


def test_a_type_that_cannot_be_validated_is_refused_with_advice() -> None:
    class Opaque:
        pass

    with pytest.raises(ConfigurationError, match=r"The request type .*Opaque") as e:
        adapter_of(Opaque, "request")

    assert "Use a pydantic model" in str(e.value)


def test_a_model_with_a_name_that_is_not_defined_is_refused_with_advice() -> None:
    class Unfinished(BaseModel):
        item: "Nowhere"  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"The request type .*Nowhere"):
        adapter_of(Unfinished, "request")


class Half(float):
    """A float of a kind of its own, as numpy's."""


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize(
    "value",
    [
        lambda x: [None, x],
        lambda x: [None, Half(x)],
        lambda x: {"a": None, "b": {"c": (x,)}},
        lambda x: [None, "NaN", x],
        lambda x: [None, b"bytes", x],
    ],
)
def test_a_non_finite_number_is_found_among_values_that_are_absent(value: Any, bad: float) -> None:
    output = OutputType(Any, "response")

    with pytest.raises(ModelOutputError, match="NaN or infinity"):
        output.encode(value(bad))


def test_an_absent_value_does_not_have_every_number_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(value: Any) -> bool:
        raise AssertionError("looked at in Python")

    monkeypatch.setattr("mlserve.conversion._holds_non_finite", refuse)

    assert OutputType(list[float | None], "response").encode([None, 1.5]) == b"[null,1.5]"
