"""What of a schema could break clients of an older one."""

import copy
import inspect
import json
from types import GenericAlias
from typing import Annotated, Any, Literal

import pytest
from fastapi import FastAPI, Header, Query
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from tests.http.releases import two_versions

from mlserve.cli.breaking import breaking_changes

NAMES = st.sampled_from(["a", "b", "c", "d"])
TYPES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([str, int, float, bool, str | None, Literal["x", "y"], Any]),
    lambda inner: (
        st.builds(lambda one: GenericAlias(list, one), inner)
        | st.builds(lambda one: GenericAlias(dict, (str, one)), inner)
    ),
    max_leaves=3,
)


def model_of(fields: dict[str, Any], n_optional: int = 0, *, name: str = "Body") -> Any:
    """Make a model; the last so many fields are optional."""
    required = len(fields) - n_optional
    members = {
        field: (kind, ...) if index < required else (kind | None, None)
        for index, (field, kind) in enumerate(fields.items())
    }
    return create_model(name, **members)  # type: ignore[call-overload]


def schema_of(request: Any, response: Any, *paths: str) -> Any:
    """Make what FastAPI makes of a function with these types; it would take too long itself."""
    components: dict[str, Any] = {}

    def shown(kind: Any, mode: Literal["validation", "serialization"]) -> Any:
        schema = TypeAdapter(kind).json_schema(
            mode=mode, ref_template=f"#/components/{mode}/{{model}}"
        )
        components[mode] = schema.pop("$defs", {})
        return {"content": {"application/json": {"schema": schema}}}

    operation = {
        "requestBody": {"required": True, **shown(request, "validation")},
        "responses": {"200": shown(response, "serialization"), "422": {}},
    }
    found = {"paths": {path: {"post": operation} for path in paths or ("/p",)}}
    return json.loads(json.dumps({**found, "components": components}))


FIELDS = st.dictionaries(NAMES, TYPES, min_size=1, max_size=4)


@given(FIELDS, FIELDS)
def test_a_schema_never_breaks_its_own_clients(asked: Any, answered: Any) -> None:
    schema = schema_of(model_of(asked), model_of(answered, name="Answer"))

    assert breaking_changes(schema, copy.deepcopy(schema)) == []


@given(FIELDS, FIELDS, TYPES)
def test_an_optional_addition_is_never_breaking(asked: Any, answered: Any, kind: Any) -> None:
    old = schema_of(model_of(asked), model_of(answered, name="Answer"))

    more = schema_of(
        model_of({**asked, "more": kind}, 1),
        model_of({**answered, "more": kind}, name="Answer"),
        "/p",
        "/q",
    )

    assert breaking_changes(old, more) == []


@given(FIELDS, FIELDS, TYPES)
def test_what_must_be_sent_or_is_gone_is_always_breaking(
    asked: Any, answered: Any, kind: Any
) -> None:
    response = model_of(answered, name="Answer")
    plain = schema_of(model_of(asked), response)
    asks_more = schema_of(model_of({**asked, "more": kind}), response)
    gives_more = schema_of(model_of(asked), model_of({**answered, "more": kind}, name="Answer"))

    assert "POST /p: the body at `more` must be sent now." in breaking_changes(plain, asks_more)
    assert "POST /p: the answer 200 at `more` is gone." in breaking_changes(gives_more, plain)


@given(FIELDS)
def test_a_path_that_is_gone_is_always_breaking(asked: Any) -> None:
    both = schema_of(model_of(asked), model_of(asked), "/p", "/q")
    one = schema_of(model_of(asked), model_of(asked))

    assert breaking_changes(both, one) == ["POST /q is gone."]
    assert breaking_changes(one, both) == []


class Inner(BaseModel):
    x: int


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


class BiggerTree(BaseModel):
    value: str
    children: list["BiggerTree"] = []


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int


class ClosedMore(Closed):
    b: int = 0


class Open(BaseModel):
    a: int


# From, to, what breaks as a request, what breaks as a response.
TYPE_CHANGES: list[tuple[Any, Any, list[str], list[str]]] = [
    (int, float, [], ["may be `number` now"]),
    (float, int, ["no longer takes `number`"], []),
    (int, str, ["no longer takes `integer`"], ["may be `string` now"]),
    (int, int | None, [], ["may be `null` now"]),
    (int | None, int, ["no longer takes `null`"], []),
    (int, Any, [], ["may be `anything` now"]),
    (Any, int, ["no longer takes `anything`"], []),
    (Literal["a"], Literal["a", "b"], [], ["may be 'b' now"]),
    (Literal["a", "b"], Literal["a"], ["no longer takes 'b'"], []),
    (str, Literal["a"], ["no longer takes `string`"], []),
    (Literal["a"], str, [], ["may be `string` now"]),
    (Literal["a", "b"], Literal["a"] | Literal["b"], [], []),
    (list[int], list[str], ["at `*` no longer takes `integer`"], ["at `*` may be `string` now"]),
    (dict[str, int], dict[str, float], [], ["at `*` may be `number` now"]),
    (tuple[int, str], tuple[int, int], ["at `1` no longer takes"], ["at `1` may be"]),
    (int, Annotated[int, Field(ge=1)], ["narrower `minimum`"], []),
    (Annotated[int, Field(gt=0)], Annotated[int, Field(ge=0)], [], ["wider `minimum`"]),
    (Annotated[int, Field(le=9)], Annotated[int, Field(lt=9)], ["narrower `maximum`"], []),
    (Annotated[str, Field(max_length=9)], str, [], ["wider `maxLength`"]),
    (Annotated[list[int], Field(min_length=1)], list[int], [], ["wider `minItems`"]),
    (str, Annotated[str, Field(pattern="a+")], ["another `pattern`"], []),
    (Tree, Tree, [], []),
    (
        Tree,
        BiggerTree,
        ["at `value` no longer takes `integer`"],
        ["at `value` may be `string` now"],
    ),
    (Closed, ClosedMore, [], []),
    (ClosedMore, Closed, ["at `b` is no longer taken"], ["at `b` is gone"]),
    (Open, Closed, ["takes no further properties"], []),
    (Closed, Open, [], []),
    (Inner, Inner | str, [], ["may be `string` now"]),
    (Inner | str, Inner, ["no longer takes `string`"], []),
]


@pytest.mark.parametrize(("before", "after", "asked", "answered"), TYPE_CHANGES)
def test_a_request_may_take_more_and_an_answer_give_less(
    before: Any, after: Any, asked: list[str], answered: list[str]
) -> None:
    request_changes = breaking_changes(schema_of(before, str), schema_of(after, str))
    answer_changes = breaking_changes(schema_of(int, before), schema_of(int, after))

    for changes, wanted, whole in (
        (request_changes, asked, "the body"),
        (answer_changes, answered, "the answer 200"),
    ):
        assert len(changes) == len(wanted), changes
        for change, words in zip(changes, wanted, strict=True):
            assert change.startswith(f"POST /p: {whole}")
            assert words in change


def app_with(*parameters: tuple[str, Any]) -> Any:
    app = FastAPI()

    async def endpoint(**_: Any) -> None: ...

    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
            for name, kind in parameters
        ]
    )
    app.get("/items/{item}")(endpoint)
    return json.loads(json.dumps(app.openapi()))


def test_a_parameter_that_must_be_sent_or_takes_less_is_breaking() -> None:
    old = app_with(("item", str), ("q", Annotated[str, Query()]))

    new = app_with(("item", int), ("q", Annotated[int, Query()]), ("key", Annotated[str, Header()]))

    assert breaking_changes(old, new) == [
        "GET /items/{item}: the path parameter `item` no longer takes `string`.",
        "GET /items/{item}: the query parameter `q` no longer takes `string`.",
        "GET /items/{item}: the header parameter `key` must be sent now.",
    ]


def test_the_name_of_a_paths_parameter_is_not_sent() -> None:
    old = app_with(("item", str))
    new = json.loads(json.dumps(old).replace("item}", "id}").replace('"item"', '"id"'))

    assert breaking_changes(old, new) == []


def test_a_status_a_media_type_or_a_method_that_is_gone_is_breaking() -> None:
    old = schema_of(int, int)
    gone = copy.deepcopy(old)
    operation = gone["paths"]["/p"]["post"]
    responses, content = operation["responses"], operation["requestBody"]["content"]
    responses["201"] = responses.pop("200")
    content["text/plain"] = content.pop("application/json")
    other = copy.deepcopy(old)
    answer = other["paths"]["/p"]["post"]["responses"]["200"]["content"]
    answer["text/plain"] = answer.pop("application/json")
    moved = copy.deepcopy(old)
    moved["paths"]["/p"]["get"] = moved["paths"]["/p"].pop("post")

    assert breaking_changes(old, gone) == [
        "POST /p: the body may no longer be `application/json`.",
        "POST /p: the status 200 is gone.",
    ]
    assert breaking_changes(old, other) == [
        "POST /p: the answer 200 is no longer `application/json`."
    ]
    assert breaking_changes(old, moved) == ["POST /p is gone."]


def test_an_error_that_is_gone_or_new_breaks_nobody() -> None:
    old = schema_of(int, int)
    new = copy.deepcopy(old)
    del new["paths"]["/p"]["post"]["responses"]["422"]

    assert breaking_changes(old, new) == breaking_changes(new, old) == []


def test_all_parts_of_a_schema_are_taken_together() -> None:
    def whole(*required: str) -> Any:
        schema = schema_of(Inner, int)
        parts = [
            {"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]}
            for name in required
        ]
        content = schema["paths"]["/p"]["post"]["requestBody"]["content"]
        content["application/json"]["schema"] = {"allOf": parts}
        return schema

    changes = breaking_changes(whole("x"), whole("x", "y"))

    assert changes == ["POST /p: the body at `y` must be sent now."]


def test_a_reference_that_leads_nowhere_or_to_itself_is_borne() -> None:
    schema = schema_of(list[Inner], int)
    for target in ({}, {"Inner": {"$ref": "#/components/validation/Inner"}}):
        broken = copy.deepcopy(schema)
        broken["components"]["validation"] = target

        assert breaking_changes(broken, broken) == []


def test_the_second_version_of_a_model_breaks_nobody_and_its_end_does() -> None:
    both = json.loads(json.dumps(two_versions().build().openapi()))
    first = copy.deepcopy(both)
    first["paths"] = {path: item for path, item in both["paths"].items() if "/v2" not in path}

    assert breaking_changes(first, both) == []
    assert "POST /v2/models/m/predict is gone." in breaking_changes(both, first)
