"""A model that gives back what it gets: for tests of whatever stands around a model."""

from collections.abc import Iterator

from pydantic import BaseModel

from mlserve.handler import ModelHandler

__all__ = ["Echo", "EchoHandler"]


class Echo(BaseModel):
    """A text."""

    text: str


class EchoHandler(ModelHandler[Echo, Echo]):
    """Answers a text with itself; streams it word by word."""

    def examples(self) -> list[Echo]:
        """Give one text."""
        return [Echo(text="hello world")]

    def infer(self, inputs: list[Echo]) -> list[Echo]:
        """Give the inputs back."""
        return inputs

    def stream(self, item: Echo) -> Iterator[Echo]:
        """Yield the text's words."""
        for word in item.text.split():
            yield Echo(text=word)
