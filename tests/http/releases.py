"""Servers with two versions of one model, for the tests of how requests are divided."""

import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel

from mlserve import Batching, ModelHandler, ModelServer


class Text(BaseModel):
    text: str


class Scored(BaseModel):
    version: str
    text: str
    score: float = 0.5


class Versioned(ModelHandler[Text, Scored]):
    """Answers with its version."""

    version: ClassVar[str] = "v1"
    score: ClassVar[float] = 0.5

    def examples(self) -> list[Text]:
        return [Text(text="hello")]

    def infer(self, inputs: list[Text]) -> list[Scored]:
        return [Scored(version=self.version, text=one.text, score=self.score) for one in inputs]

    def stream(self, item: Text) -> Iterator[Scored]:
        for word in item.text.split():
            yield Scored(version=self.version, text=word, score=self.score)


class Second(Versioned):
    version = "v2"


class Twin(Versioned):
    """Says what v1 says, with another score in the last digits."""

    score = 0.5000001


class Raising(Versioned):
    def infer(self, inputs: list[Text]) -> list[Scored]:
        if inputs[0].text == "hello":
            return super().infer(inputs)
        raise RuntimeError("This version is broken.")


class Holding(Versioned):
    """Holds every request but the example until it may go."""

    batching = Batching(max_size=1)
    may_go: ClassVar[threading.Event] = threading.Event()
    n_held: ClassVar[list[str]] = []

    def infer(self, inputs: list[Text]) -> list[Scored]:
        if inputs[0].text != "hello":
            self.n_held.append(inputs[0].text)
            assert self.may_go.wait(15)
        return super().infer(inputs)


def two_versions(second: Any = Second, **options: Any) -> ModelServer:
    server = ModelServer().add("m", Versioned, **options)
    return server.add("m", second, version="v2", **options)
