"""What is read from a handler class, and how each misuse of it is named."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from mlserve.contract import read_contract
from mlserve.errors import ConfigurationError
from mlserve.handler import Call, ModelHandler
from mlserve.payloads import Upload

T = TypeVar("T")
U = TypeVar("U")
Handler = ModelHandler[Any, Any, Any]


class Text(BaseModel):
    text: str


class Verdict(BaseModel):
    label: str


class Double(ModelHandler[float, float]):
    def infer(self, inputs: list[float]) -> list[float]:
        return [2 * value for value in inputs]


def refusal_of(cls: type[Handler]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_contract(cls)
    message = str(caught.value)
    assert message.endswith(".")
    return message


def test_a_handler_is_read() -> None:
    contract = read_contract(Double)

    assert contract.handler_class is Double
    assert contract.request_type is float
    assert contract.response.declared is float
    assert contract.chunk.declared is float
    assert contract.upload_fields == ()
    assert (contract.can_infer, contract.can_stream) == (True, False)
    assert contract.request.validate_python("2.5") == 2.5


def test_hooks_that_are_not_written_are_known_as_such() -> None:
    hooks = read_contract(Double).hooks

    assert {name for name, hook in hooks.items() if hook.overridden} == {"infer"}
    assert {name for name, hook in hooks.items() if hook.needs_thread} == {"infer"}
    assert not any(hook.wants_call for hook in hooks.values())


def test_async_hooks_need_no_thread() -> None:
    class Remote(ModelHandler[str, str]):
        async def load(self) -> None: ...

        async def infer(self, inputs: list[str]) -> list[str]:
            return inputs

        async def stream(self, item: str) -> AsyncIterator[str]:
            yield item

    hooks = read_contract(Remote).hooks

    assert {name for name, hook in hooks.items() if hook.is_async} == {"load", "infer", "stream"}
    assert not any(hook.needs_thread for hook in hooks.values())


def test_a_handler_may_only_stream() -> None:
    class Words(ModelHandler[str, str]):
        def stream(self, item: str) -> Iterator[str]:
            yield from item.split()

    contract = read_contract(Words)

    assert (contract.can_infer, contract.can_stream) == (False, True)


def test_the_third_type_argument_is_the_chunk_type() -> None:
    class Chat(ModelHandler[Text, Verdict, str]):
        def stream(self, item: Text) -> Iterator[str]:
            yield item.text

    contract = read_contract(Chat)

    assert contract.response.declared is Verdict
    assert contract.chunk.declared is str


def test_types_are_found_through_a_class_in_between() -> None:
    class Triple(Double):
        pass

    assert read_contract(Triple).request_type is float


def test_types_are_found_through_generic_classes_in_between() -> None:
    class Base(ModelHandler[T, U]):
        def infer(self, inputs: list[T]) -> list[U]:
            raise NotImplementedError

    class Swapped(Base[U, T], Generic[T, U]):
        pass

    class Concrete(Swapped[int, str]):
        pass

    contract = read_contract(Concrete)

    assert (contract.request_type, contract.response.declared) == (str, int)


def test_types_are_found_inside_other_types() -> None:
    class Lists(ModelHandler[T, list[T], T | None]):
        def infer(self, inputs: list[T]) -> list[list[T]]:
            return [[item] for item in inputs]

    class Numbers(Lists[int]):
        pass

    contract = read_contract(Numbers)

    assert contract.response.declared == list[int]
    assert contract.chunk.declared == int | None


def test_types_are_found_inside_generic_models() -> None:
    class Page(BaseModel, Generic[T]):
        item: T

    class Pages(ModelHandler[T, Page[T]]):
        def infer(self, inputs: list[T]) -> list[Page[T]]:
            return [Page(item=item) for item in inputs]

    class Numbers(Pages[int]):
        pass

    assert read_contract(Numbers).response.declared is Page[int]


def test_a_mixin_beside_the_handler_is_passed_over() -> None:
    class Named:
        label = "x"

    class Both(Named, Double):
        pass

    assert read_contract(Both).request_type is float


def test_constraints_of_annotated_types_hold() -> None:
    class Short(ModelHandler[Annotated[str, Field(max_length=3)], str]):
        def infer(self, inputs: list[str]) -> list[str]:
            return inputs

    contract = read_contract(Short)

    with pytest.raises(ValueError, match="at most 3"):
        contract.request.validate_python("long text")


def test_plain_types_dataclasses_and_typed_dicts_are_types_too() -> None:
    @dataclass
    class Point:
        x: float

    class Score(TypedDict):
        score: float

    class Plain(ModelHandler[Point, Score]):
        def infer(self, inputs: list[Point]) -> list[Score]:
            return [{"score": point.x} for point in inputs]

    contract = read_contract(Plain)

    assert contract.request.validate_python({"x": 1}) == Point(1.0)
    assert contract.response.accept({"score": 1}) == {"score": 1.0}


@pytest.mark.parametrize("position", [0, 1])
def test_missing_type_arguments_are_named(position: int) -> None:
    class Bare(ModelHandler):  # type: ignore[type-arg]  # this is what must fail
        def infer(self, inputs: list[Any]) -> list[Any]:
            return inputs

    class Open(ModelHandler[int, T] if position else ModelHandler[T, int]):  # type: ignore[misc]
        def infer(self, inputs: list[Any]) -> list[Any]:
            return inputs

    for cls in (Bare, Open):
        message = refusal_of(cls)
        assert f"`{cls.__name__}` does not say its request and response types" in message
        assert f"`class {cls.__name__}(ModelHandler[Request, Response])`" in message


def test_type_arguments_left_open_inside_other_types_are_named() -> None:
    class Lists(ModelHandler[int, list[T]]):
        def infer(self, inputs: list[int]) -> list[list[T]]:
            raise NotImplementedError

    assert "does not say its request and response types" in refusal_of(Lists)


def test_a_chunk_type_left_open_is_named() -> None:
    class Open(ModelHandler[int, int, T]):
        def infer(self, inputs: list[int]) -> list[int]:
            return inputs

    assert "types" in refusal_of(Open)


def test_a_type_that_pydantic_cannot_validate_is_named() -> None:
    class Opaque:
        pass

    class Bad(ModelHandler[int, Opaque]):
        def infer(self, inputs: list[int]) -> list[Opaque]:
            return []

    message = refusal_of(Bad)
    assert "response type" in message
    assert "Use a pydantic model" in message


def test_a_type_whose_name_is_not_known_is_named() -> None:
    class Bad(ModelHandler["Nowhere", int]):  # type: ignore[name-defined]
        def infer(self, inputs: list[Any]) -> list[int]:
            return []

    assert "request type" in refusal_of(Bad)


def test_a_handler_without_infer_and_stream_is_named() -> None:
    class Empty(ModelHandler[int, int]):
        pass

    message = refusal_of(Empty)
    assert "`Empty` has neither `infer` nor `stream`" in message
    assert "`def infer(self, inputs: list) -> list`" in message


def test_an_infer_that_yields_is_named() -> None:
    class Yields(ModelHandler[int, int]):
        def infer(self, inputs: list[int]) -> Iterator[int]:
            yield from inputs

    message = refusal_of(Yields)
    assert "`Yields.infer` must return its result, not `yield` it" in message
    assert "Name it `stream`" in message


def test_an_async_hook_that_yields_is_named() -> None:
    class Yields(ModelHandler[int, int]):
        async def preprocess(self, request: int) -> AsyncIterator[int]:
            yield request

        def infer(self, inputs: list[int]) -> list[int]:
            return inputs

    message = refusal_of(Yields)
    assert "`Yields.preprocess` must return its result" in message
    assert "Name it" not in message


def test_a_stream_that_is_a_coroutine_is_named() -> None:
    class Returns(ModelHandler[int, int]):
        async def stream(self, item: int) -> list[int]:
            return [item]

    assert "`Returns.stream` must be a generator: `yield` each chunk" in refusal_of(Returns)


@pytest.mark.parametrize("kind", [staticmethod, classmethod, property])
def test_a_hook_that_is_not_a_method_is_named(kind: Any) -> None:
    class Wrong(ModelHandler[int, int]):
        infer = kind(lambda *inputs: list(inputs))

    assert "`Wrong.infer` must be a method with `self`" in refusal_of(Wrong)


def test_a_hook_that_is_not_a_function_is_named() -> None:
    class Wrong(ModelHandler[int, int]):
        postprocess = None  # type: ignore[assignment]  # this is what must fail

        def infer(self, inputs: list[int]) -> list[int]:
            return inputs

    assert "`Wrong.postprocess` must be a method with `self`" in refusal_of(Wrong)


def test_a_hook_without_arguments_that_takes_one_is_named() -> None:
    class Wrong(ModelHandler[int, int]):
        def load(self, path: str) -> None: ...  # type: ignore[override]

        def infer(self, inputs: list[int]) -> list[int]:
            return inputs

    assert "`Wrong.load` must take no argument but `self`, it takes `path`" in refusal_of(Wrong)


def test_a_hook_without_arguments_may_have_defaults() -> None:
    class Fine(ModelHandler[int, int]):
        def load(self, path: str = "model.bin", *more: str, **options: str) -> None: ...

        def infer(self, inputs: list[int]) -> list[int]:
            return inputs

    assert not read_contract(Fine).hooks["load"].wants_call


class NoInput(ModelHandler[int, int]):
    def infer(self) -> list[int]:  # type: ignore[override]
        return []


class TooMany(ModelHandler[int, int]):
    def infer(self, inputs: list[int], calls: list[Call], more: int) -> list[int]:
        return inputs


class ByKeyword(ModelHandler[int, int]):
    def infer(self, inputs: list[int], *, calls: list[Call]) -> list[int]:
        return inputs


class AnyNumber(ModelHandler[int, int]):
    def infer(self, *inputs: int) -> list[int]:  # type: ignore[override]
        return list(inputs)


@pytest.mark.parametrize("cls", [NoInput, TooMany, ByKeyword, AnyNumber])
def test_an_infer_with_the_wrong_parameters_is_named(cls: type[Handler]) -> None:
    message = refusal_of(cls)

    assert f"`{cls.__name__}.infer` must have the parameters `(self, inputs)`" in message
    assert "`(self, inputs, calls)`" in message


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("preprocess", "request"),
        ("postprocess", "output"),
        ("stream", "input"),
        ("cost", "input"),
        ("batch_key", "input"),
    ],
)
def test_a_per_request_hook_with_the_wrong_parameters_is_named(name: str, argument: str) -> None:
    class Wrong(Double):
        pass

    setattr(Wrong, name, lambda self, one, two, three: one)

    message = refusal_of(Wrong)
    assert f"`Wrong.{name}` must have the parameters `(self, {argument})`" in message
    assert f"`(self, {argument}, call)`" in message


def wants_call(name: str, function: Any) -> bool:
    class Wants(Double):
        pass

    setattr(Wants, name, function)
    return read_contract(Wants).hooks[name].wants_call


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "stream", "cost", "batch_key"])
def test_a_hook_wants_the_call_as_its_second_parameter_or_by_its_name(name: str) -> None:
    assert not wants_call(name, lambda self, value: value)
    assert wants_call(name, lambda self, value, call: value)
    assert wants_call(name, lambda self, value, anything: value)
    assert wants_call(name, lambda self, value, call=None: value)
    assert not wants_call(name, lambda self, value, scale=2: value)
    assert not wants_call(name, lambda self, value, *args, **kwargs: value)


def test_infer_wants_the_calls_as_its_second_parameter_or_by_their_name() -> None:
    assert not wants_call("infer", lambda self, inputs: inputs)
    assert wants_call("infer", lambda self, inputs, calls: inputs)
    assert wants_call("infer", lambda self, inputs, calls=(): inputs)
    assert not wants_call("infer", lambda self, inputs, temperature=1.0: inputs)


def test_fields_with_files_are_found_however_they_are_wrapped() -> None:
    class Form(BaseModel):
        image: Upload
        more: list[Upload] = []
        mask: Upload | None = None
        note: str = ""

    class Scans(ModelHandler[Form, str]):
        def infer(self, inputs: list[Form]) -> list[str]:
            return [form.note for form in inputs]

    assert read_contract(Scans).upload_fields == ("image", "more", "mask")


@dataclass
class Picture:
    file: Upload
    title: str = ""


class Scan(TypedDict):
    pages: list[Upload]


@dataclass
class Album:
    cover: Picture | None


@pytest.mark.parametrize("request_type", [Picture, Scan, Album, Upload, list[Picture]])
def test_files_in_anything_but_a_pydantic_model_are_refused(request_type: Any) -> None:
    class Reader(ModelHandler[request_type, str]):
        def infer(self, inputs: list[Any]) -> list[str]:
            return [""] * len(inputs)

    message = refusal_of(Reader)

    assert "`Upload`" in message
    assert "pydantic model" in message


@dataclass
class Tree:
    children: "list[Tree]"


def test_a_request_type_that_holds_itself_is_read() -> None:
    class Counter(ModelHandler[Tree, int]):
        def infer(self, inputs: list[Tree]) -> list[int]:
            return [len(tree.children) for tree in inputs]

    assert read_contract(Counter).upload_fields == ()
