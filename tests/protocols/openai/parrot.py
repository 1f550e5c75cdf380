"""Models of the tests: deterministic, and told by their input how to behave."""

import threading
from collections.abc import Iterator

from mlserve import Call, InvalidInputError, ModelHandler, OutOfMemoryError
from mlserve.tasks.embedding import Embedding, EmbeddingRequest
from mlserve.tasks.generation import (
    Choice,
    Generation,
    GenerationChunk,
    GenerationRequest,
    TokenLogprob,
    TopLogprob,
    Usage,
)


class Heard:
    """What a model was asked, and when it was left."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.begun = threading.Event()
        self.closed = threading.Event()


def words_of(request: GenerationRequest) -> list[str]:
    if request.messages is not None:
        text = request.messages[-1].content or ""
    else:
        text = request.prompt if isinstance(request.prompt, str) else f"ids {request.prompt}"
    words = text.split()
    return words[: request.max_tokens] if request.max_tokens else words


def token_of(word: str, n_top: int) -> TokenLogprob:
    top = TopLogprob(token=word, logprob=-0.5, bytes=list(word.encode()))
    return TokenLogprob(**top.model_dump(), top_logprobs=[top] * n_top)


class Parrot(ModelHandler[GenerationRequest, Generation, GenerationChunk]):
    """Repeats the last message word by word, and fails where it is told to."""

    def __init__(self, heard: Heard) -> None:
        self.heard = heard

    def infer(self, inputs: list[GenerationRequest], calls: list[Call]) -> list[Generation]:
        return [self._answer(*pair) for pair in zip(inputs, calls, strict=True)]

    def stream(self, item: GenerationRequest, call: Call) -> Iterator[GenerationChunk]:
        self.heard.requests.append(item)
        self.heard.begun.set()
        words = self._words(item)
        try:
            for index in range(item.n):
                yield from self._pieces(item, index, words)
                is_last = index == item.n - 1
                yield GenerationChunk(
                    index=index,
                    finish_reason="stop",
                    usage=self._usage(item, words) if is_last else None,
                )
            while "forever" in words and not call.cancelled:
                yield GenerationChunk(text="and on ")
                threading.Event().wait(0.005)
        finally:
            self.heard.closed.set()

    def _pieces(
        self, item: GenerationRequest, index: int, words: list[str]
    ) -> Iterator[GenerationChunk]:
        for word in words:
            if word == "stumble":
                raise OutOfMemoryError("parrot")
            tokens = [token_of(word, item.top_logprobs)] if item.logprobs else None
            yield GenerationChunk(index=index, text=f"{word} ", logprobs=tokens)

    def _answer(self, item: GenerationRequest, call: Call) -> Generation:
        self.heard.requests.append(item)
        self.heard.begun.set()
        words = self._words(item)
        if "forever" in words:
            waiting = threading.Event()
            while not call.cancelled:
                waiting.wait(0.005)
            self.heard.closed.set()
        tokens = [token_of(word, item.top_logprobs) for word in words]
        calls = None
        if item.tools:
            function = {"name": item.tools[0]["function"]["name"], "arguments": "{}"}
            calls = [{"id": "call-1", "type": "function", "function": function}]
        choices = [
            Choice(
                index=index,
                text="" if calls else " ".join(words),
                finish_reason="tool_calls" if calls else "stop",
                logprobs=tokens if item.logprobs else None,
                tool_calls=calls,
            )
            for index in range(item.n)
        ]
        return Generation(choices=choices, usage=self._usage(item, words))

    def _words(self, item: GenerationRequest) -> list[str]:
        words = words_of(item)
        if "refuse" in words:
            raise InvalidInputError("The parrot will not say that.", param="messages")
        if "break" in words:
            raise RuntimeError("secret")
        if "burst" in words:
            raise OutOfMemoryError("parrot")
        return words

    def _usage(self, item: GenerationRequest, words: list[str]) -> Usage:
        return Usage(prompt_tokens=len(words), completion_tokens=len(words) * item.n)


class Lengths(ModelHandler[EmbeddingRequest, Embedding]):
    """Makes vectors of 3, 4 and the text's length."""

    def infer(self, inputs: list[EmbeddingRequest]) -> list[Embedding]:
        return [
            Embedding(embedding=[3.0, 4.0, float(len(item.text))], tokens=len(item.text.split()))
            for item in inputs
        ]
