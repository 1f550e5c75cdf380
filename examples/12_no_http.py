"""
The models without HTTP: in a script, a notebook, a test, or behind another protocol.

    python 12_no_http.py

The same loading, queue, batches and errors as behind HTTP; only sockets and JSON are missing.
"""

import asyncio
import sys

from pydantic import BaseModel

from mlserve import Batching, InvalidInputError, ModelHandler, ModelServer


class Text(BaseModel):
    text: str


class Length(BaseModel):
    characters: int


class Count(ModelHandler[Text, Length, str]):  # the third type is that of a stream's chunks
    def examples(self) -> list[Text]:
        return [Text(text="hello")]

    def preprocess(self, request: Text) -> Text:
        if not request.text:
            raise InvalidInputError("`text` is empty.", param="text")
        return request

    def infer(self, inputs: list[Text]) -> list[Length]:
        return [Length(characters=len(item.text)) for item in inputs]

    async def stream(self, item: Text): ...


server = ModelServer().add("count", Count, batching=Batching(max_size=8))
