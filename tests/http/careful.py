"""A model that fails in every way that there is, and never says what it was asked."""

import os
import threading
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from mlserve import Batching, Call, InvalidInputError, ModelHandler


class Ask(BaseModel):
    text: str
    way: str = ""


class Careful(ModelHandler[Ask, str]):
    """Fails as a request's `way` says."""

    batching = Batching(max_size=4)

    def preprocess(self, request: Ask, call: Call) -> Ask:
        call.annotate(n_characters=len(request.text))
        if request.way == "refuse":
            raise InvalidInputError("This is not for us.", param="text")
        if request.way == "value error":
            raise ValueError("This is not for us.")
        if request.way == "preprocess":
            raise LookupError("It is broken.")
        return request

    def cost(self, item: Ask) -> Any:
        return item.text if item.way == "cost" else 1

    def batch_key(self, item: Ask) -> Any:
        return [item.text] if item.way == "batch_key" else item.way

    def infer(self, inputs: list[Ask]) -> Any:
        way = inputs[0].way
        if way == "infer":
            raise RuntimeError("It is broken.")
        if way == "out of memory":
            raise MemoryError
        if way == "exit":
            os._exit(3)
        if way == "slow":
            threading.Event().wait(0.3)
        if way == "too few":
            return []
        if way == "a string":
            return inputs[0].text
        if way == "an exception":
            return [RuntimeError("It is broken.") for _ in inputs]
        if way == "another type":
            return [{item.text: item.text} for item in inputs]
        return [item.text for item in inputs]

    def postprocess(self, output: Any) -> Any:
        if output == "":
            raise RuntimeError("It is broken.")
        return output

    def stream(self, item: Ask) -> Iterator[Any]:
        if item.way == "at once":
            raise RuntimeError("It is broken.")
        yield "a"
        if item.way == "infer":
            raise RuntimeError("It is broken.")
        if item.way == "another type":
            yield {item.text: item.text}
        yield item.text
