"""What makes handlers arrives in another process, or is refused in words that help."""

import functools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from mlserve import ConfigurationError, ModelHandler, handler
from mlserve.contract import read_contract
from mlserve.processes.pickling import dumps_factory, loads_factory
from mlserve.spec import Factory
from mlserve.testing import EchoHandler

IN_MAIN = """
import functools, sys
from mlserve import ModelHandler, handler
from mlserve.processes.pickling import dumps_factory

class Adder(ModelHandler[int, int]):
    def __init__(self, amount=1):
        self.amount = amount
    def infer(self, inputs):
        return [value + self.amount for value in inputs]

def triple(inputs):
    return [3 * value for value in inputs]

SOURCES = {
    "class": Adder,
    "partial": functools.partial(Adder, 2),
    "functions": handler(request=int, response=int, infer=triple),
}

if __name__ == "__main__":
    sys.stdout.buffer.write(dumps_factory(SOURCES[sys.argv[1]], "m"))
"""

LOADED = """
import runpy, sys, types
from mlserve.processes.pickling import loads_factory
main = types.ModuleType("__mp_main__")
main.__dict__.update(runpy.run_path(sys.argv[1], run_name="__mp_main__"))
sys.modules["__main__"] = main
print(loads_factory(sys.stdin.buffer.read())().infer([5]))
"""


class Pair(BaseModel):
    left: int
    right: int


class Adder(ModelHandler[int, int]):
    def __init__(self, amount: Any = 1) -> None:
        self.amount = amount

    def infer(self, inputs: list[int]) -> list[int]:
        return [value + self.amount for value in inputs]


class Wrapping(ModelHandler[int, int]):
    """Runs another handler, which it is given as a class."""

    def __init__(self, inner: type[ModelHandler[int, int]], *, n_times: int) -> None:
        self.inner = inner()
        self.n_times = n_times

    def infer(self, inputs: list[int]) -> list[int]:
        for _ in range(self.n_times):
            inputs = self.inner.infer(inputs)
        return inputs


class Unwilling:
    def __reduce__(self) -> str:
        raise OSError("I stay here.")


def make_adder() -> Adder:
    return Adder(3)


def double(inputs: list[int]) -> list[int]:
    """Double each value."""
    return [2 * value for value in inputs]


def load_amount() -> int:
    return 10


def add_loaded(loaded: int, inputs: list[int]) -> list[int]:
    return [loaded + value for value in inputs]


def sum_of(pair: Pair) -> int:
    return pair.left + pair.right


def negative(output: int) -> int:
    return -output


Double = handler(request=int, response=int, infer=double)


class OfFunctions(Double):  # type: ignore[misc,valid-type]  # a class made at run time
    """Has a name of its own, unlike what it is made of."""


def moved(factory: Factory) -> ModelHandler[Any, Any, Any]:
    return loads_factory(dumps_factory(factory, "m"))()


def test_a_class_a_function_and_a_partial_arrive_as_they_were() -> None:
    assert type(moved(Adder)) is Adder
    assert type(moved(EchoHandler)) is EchoHandler
    assert type(moved(OfFunctions)) is OfFunctions
    assert moved(make_adder).infer([1]) == [4]
    assert moved(functools.partial(Adder, 5)).infer([1]) == [6]
    assert moved(functools.partial(functools.partial(Adder), amount=6)).infer([1]) == [7]


def test_a_handler_of_functions_is_made_anew_with_the_same_hooks_types_and_examples() -> None:
    cls = handler(
        request=Pair,
        response=Annotated[int, Field(le=0)],
        infer=double,
        preprocess=sum_of,
        postprocess=negative,
        examples=[Pair(left=1, right=2)],
    )

    made = moved(cls)

    old, new = read_contract(cls), read_contract(type(made))
    assert (type(made).__name__, type(made).__doc__) == (cls.__name__, "Double each value.")
    assert new.request_type is old.request_type
    assert repr(new.response.declared) == repr(old.response.declared)
    assert new.hooks == old.hooks
    assert list(made.examples()) == [Pair(left=1, right=2)]
    assert made.preprocess(Pair(left=1, right=2)) == 3
    assert made.infer([3]) == [6]
    assert made.postprocess(6) == -6


def test_a_handler_of_functions_loads_in_its_new_place() -> None:
    made = moved(handler(request=int, response=int, load=load_amount, infer=add_loaded))

    made.load()

    assert made.infer([1]) == [11]


def test_a_handler_of_functions_may_lie_within_a_partial() -> None:
    assert moved(functools.partial(Double)).infer([3]) == [6]
    assert moved(functools.partial(Wrapping, Double, n_times=3)).infer([1]) == [8]
    assert moved(functools.partial(Wrapping, inner=Adder, n_times=2)).infer([1]) == [3]


def test_a_class_that_stands_twice_arrives_as_one() -> None:
    pair: Any = functools.partial(dict, first=Double, second=Double)

    arrived: Any = loads_factory(dumps_factory(pair, "m"))()

    assert arrived["first"] is arrived["second"]


def local_class() -> Any:
    class Local(EchoHandler):
        pass

    return Local


@pytest.mark.parametrize(
    "factory",
    [
        lambda: Adder(),  # noqa: PLW0108 - what must fail
        local_class(),
        functools.partial(Adder, threading.Lock()),
        functools.partial(Adder, lambda: 1),
        functools.partial(Adder, Unwilling()),
        handler(request=int, response=int, infer=lambda values: values),
        functools.partial(Wrapping, local_class(), n_times=1),
    ],
    ids=["lambda", "local", "lock", "argument", "unwilling", "infer", "nested"],
)
def test_what_cannot_be_found_elsewhere_is_refused_in_words_that_help(factory: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        dumps_factory(factory, "bert")

    message = str(caught.value)
    assert message.startswith("The handler of model `bert` cannot be sent to another process (")
    assert "a class at module level, or `functools.partial` of it." in message
    assert caught.value.__cause__ is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "answer"), [("class", b"[6]"), ("partial", b"[7]"), ("functions", b"[15]")]
)
def test_what_a_script_defines_is_found_in_a_process_that_has_prepared_it(
    source: str, answer: bytes, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(IN_MAIN)

    data = subprocess.run(
        [sys.executable, script, source], check=True, stdout=subprocess.PIPE, timeout=15
    ).stdout
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED, script],
        check=True,
        input=data,
        stdout=subprocess.PIPE,
        timeout=15,
    ).stdout

    assert loaded.strip() == answer
