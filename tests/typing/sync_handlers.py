"""Sync handlers as users write them: they must pass a strict type checker as they stand."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel
from typing_extensions import TypedDict

from mlserve import Batching, Binary, Call, InvalidInputError, ModelHandler, Replicas, Upload

__all__ = ["Chat", "Full", "FullWithCall", "Plain", "Resize", "Scores", "Untyped"]


class Review(BaseModel):
    text: str


class Verdict(BaseModel):
    label: str
    score: float


class Plain(ModelHandler[float, float]):
    """The least that a handler needs."""

    def infer(self, inputs: list[float]) -> list[float]:
        return [2 * value for value in inputs]


class Full(ModelHandler[Review, Verdict]):
    """Every hook, without `call`."""

    idempotent = False
    batching = Batching(max_size=8)
    replicas = Replicas(count=2)

    def load(self) -> None:
        self.context.progress(0.5, self.context.device)
        self.words = {"good"}

    def warmup(self) -> None:
        self.infer([["good"]])

    def examples(self) -> list[Review]:
        return [Review(text="good")]

    def preprocess(self, request: Review) -> list[str]:
        if not request.text:
            raise InvalidInputError("`text` is empty.", param="text")
        return request.text.split()

    def cost(self, item: list[str]) -> int:
        return len(item)

    def batch_key(self, item: list[str]) -> Hashable:
        return len(item)

    def infer(self, inputs: list[list[str]]) -> list[float | Exception]:
        return [len(self.words.intersection(words)) / len(words) for words in inputs]

    def postprocess(self, output: float) -> Verdict:
        return Verdict(label="good" if output else "bad", score=output)

    def unload(self) -> None:
        del self.words

    def health(self) -> None:
        assert self.words


class FullWithCall(ModelHandler[Review, Verdict]):
    """Every hook that may take the call, with it."""

    def preprocess(self, request: Review, call: Call) -> str:
        call.annotate(n_characters=len(request.text), tenant=call.headers.get("x-tenant"))
        return request.text

    def cost(self, item: str, call: Call) -> int:
        return len(item)

    def batch_key(self, item: str, call: Call) -> str:
        return call.request_id

    def infer(self, inputs: list[str], calls: list[Call]) -> list[float]:
        return [0.0 if call.cancelled else call.remaining_s for call in calls]

    def postprocess(self, output: float, call: Call) -> Verdict:
        return Verdict(label=call.request_id, score=output)

    def stream(self, item: str, call: Call) -> Iterator[Verdict]:
        for word in item.split():
            if call.cancelled:
                return
            yield Verdict(label=word, score=1.0)


class Chat(ModelHandler[Review, Verdict, str]):
    """A third type argument: chunks are not like responses."""

    def stream(self, item: Review) -> Iterator[str]:
        yield from item.text.split()


@dataclass
class Point:
    x: float


class Score(TypedDict):
    score: float


class Scores(ModelHandler[Point, Score]):
    """A dataclass comes in, a `TypedDict` goes out."""

    def infer(self, inputs: list[Point]) -> list[Score]:
        return [{"score": point.x} for point in inputs]


class Picture(BaseModel):
    image: Upload


class Resize(ModelHandler[Picture, Binary]):
    """A file comes in, a file goes out."""

    def infer(self, inputs: list[Picture]) -> list[Binary]:
        return [Binary(item.image.content, media_type=item.image.content_type) for item in inputs]


class Untyped(ModelHandler[dict[str, object], list[float]]):
    """Plain JSON types."""

    def infer(self, inputs: list[dict[str, object]]) -> list[list[float]]:
        return [[float(len(item))] for item in inputs]
