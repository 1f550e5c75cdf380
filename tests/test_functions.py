"""Handlers made of functions."""

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mlserve import Batching, ModelServer
from mlserve.contract import read_contract
from mlserve.errors import ConfigurationError
from mlserve.functions import handler, parts_of


def double(values: list[float]) -> list[float]:
    """Double each value."""
    return [2 * value for value in values]


def test_a_function_becomes_a_handler() -> None:
    cls = handler(request=float, response=float, infer=double)

    contract = read_contract(cls)
    assert (contract.request_type, contract.response.declared) == (float, float)
    assert {name for name, hook in contract.hooks.items() if hook.overridden} == {"infer"}
    assert cls().infer([1.5]) == [3.0]


def test_a_handler_is_named_and_described_by_its_infer() -> None:
    assert handler(request=float, response=float, infer=double).__name__ == "handler_of_double"
    assert handler(request=float, response=float, infer=double).__doc__ == "Double each value."
    assert (
        handler(request=float, response=float, infer=lambda xs: xs).__name__ == "handler_of_infer"
    )


def test_the_loaded_object_is_passed_to_every_function() -> None:
    cls = handler(
        request=str,
        response=str,
        load=lambda: {"prefix": "<", "suffix": ">"},
        preprocess=lambda loaded, request: loaded["prefix"] + request,
        infer=lambda loaded, inputs: [item.upper() for item in inputs],
        postprocess=lambda loaded, output: output + loaded["suffix"],
    )
    model = cls()

    model.load()

    (output,) = model.infer([model.preprocess("a")])
    assert model.postprocess(output) == "<A>"


def test_each_replica_loads_its_own_object() -> None:
    cls = handler(request=int, response=int, load=list, infer=lambda loaded, inputs: inputs)
    first, second = cls(), cls()

    first.load()
    second.load()

    assert vars(first)["loaded"] is not vars(second)["loaded"]


def test_async_functions_become_async_hooks() -> None:
    async def load() -> int:
        return 10

    async def infer(loaded: int, inputs: list[int]) -> list[int]:
        return [loaded * value for value in inputs]

    async def postprocess(loaded: int, output: int) -> int:
        return output + loaded

    cls = handler(request=int, response=int, load=load, infer=infer, postprocess=postprocess)
    hooks = read_contract(cls).hooks

    async def scenario() -> Any:
        model = cls()
        await model.load()
        (output,) = await model.infer([2])
        return await model.postprocess(output)

    assert {name for name, hook in hooks.items() if hook.is_async} == {
        "load",
        "infer",
        "postprocess",
    }
    assert asyncio.run(scenario()) == 30


def test_an_async_function_without_load_gets_the_value_alone() -> None:
    async def infer(inputs: list[int]) -> list[int]:
        return inputs

    cls = handler(request=int, response=int, infer=infer)

    assert asyncio.run(cls().infer([1])) == [1]


@pytest.mark.parametrize("name", ["infer", "load", "preprocess", "postprocess"])
def test_what_cannot_be_called_is_named(name: str) -> None:
    functions: dict[str, Any] = {"infer": double, name: 5}

    with pytest.raises(ConfigurationError, match=f"`{name}` must be a function, got 5"):
        handler(request=float, response=float, **functions)


def test_examples_of_functions_warm_the_model_up_and_stand_in_openapi() -> None:
    seen: list[list[float]] = []

    def infer(inputs: list[float]) -> list[float]:
        seen.append(inputs)
        return inputs

    examples = [1.5]
    Echo = handler(request=float, response=float, infer=infer, examples=examples)  # noqa: N806
    app = ModelServer().add("echo", Echo, batching=Batching(max_size=2)).build()
    with TestClient(app) as client:
        shown = client.get("/v1/models/echo").json()["example"]

    assert seen == [[1.5], [1.5, 1.5]]
    assert shown == 1.5


def test_a_class_tells_what_it_was_made_of_and_its_subclasses_do_not() -> None:
    cls = handler(request=float, response=float, infer=double, examples=[1.5])

    class Sub(cls):  # type: ignore[misc,valid-type]  # a class made at run time
        pass

    parts = parts_of(cls)
    assert parts is not None
    assert parts["infer"] is double
    assert parts_of(handler(**parts)) == parts
    assert parts_of(Sub) is None
