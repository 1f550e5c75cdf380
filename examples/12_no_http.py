"""
The models without HTTP: in a script, a notebook, a test, or behind another protocol.

    python 12_no_http.py

Loading, queue, batches and errors are those behind HTTP; only sockets and JSON are missing.
`--check` makes no difference here: what is shown is checked in any case.
"""

import asyncio
from collections.abc import Iterator

from pydantic import BaseModel

from mlserve import InvalidInputError, ModelHandler, ModelServer, SchemaViolationError


class Text(BaseModel):
    text: str


class Length(BaseModel):
    words: int


class Count(ModelHandler[Text, Length, str]):  # the third type is that of a stream's chunks
    def examples(self) -> list[Text]:
        return [Text(text="one two")]

    def preprocess(self, request: Text) -> list[str]:
        words = request.text.split()
        if not words:
            raise InvalidInputError("`text` has no words.", param="text")
        return words

    def infer(self, inputs: list[list[str]]) -> list[Length]:
        return [Length(words=len(words)) for words in inputs]

    def stream(self, words: list[str]) -> Iterator[str]:
        yield from words


server = ModelServer().add("count", Count)


async def main() -> None:
    async with server.started():  # loads and warms up; unloads at the end
        model = server.model_for("count")
        answer = await model.predict(Text(text="three words here"), timeout_s=5)
        print(answer)
        assert answer == Length(words=3)  # an object, not JSON

        asked = [model.predict({"text": "word " * n}) for n in range(1, 33)]  # a dict will do
        answers = await asyncio.gather(*asked)
        assert [answer.words for answer in answers] == list(range(1, 33))
        print(model.statistics())

        chunks = [chunk async for chunk in model.stream(Text(text="a b c"))]
        print(chunks)
        assert chunks == ["a", "b", "c"]

        for wrong, expected in (({"text": " "}, InvalidInputError), ({}, SchemaViolationError)):
            try:
                await model.predict(wrong)
            except expected as error:  # what HTTP would answer with is in it, too
                print(error.status, error.code, error)
            else:
                raise AssertionError("It was not refused.")


if __name__ == "__main__":
    asyncio.run(main())
