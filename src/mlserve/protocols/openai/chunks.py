"""
The chunks of a stream in their order. Pure.

Of a message: for each choice its role, then pieces, then why it ended; of a text: pieces, of which
the last says why it ended. Then, where asked for, one chunk without choices that says what it took.

Source: the OpenAI API reference, "The chat completion chunk object".
"""

from typing import Any, Protocol

from mlserve.protocols.openai.answers import (
    Head,
    chat_logprobs,
    completion_logprobs,
    to_json,
    usage_of,
)
from mlserve.tasks.generation import GenerationChunk, Usage

__all__ = ["ChatWriter", "CompletionWriter", "Writer"]


class Writer(Protocol):
    """Makes the protocol's chunks, as JSON, of those of the model."""

    def chunk(self, prompt: int, chunk: GenerationChunk) -> list[bytes]:
        """Make what a chunk of the model says about the prompt of this number."""

    def end(self) -> list[bytes]:
        """Make what is left to say when the model has nothing more to say."""


class _Written:
    """What both kinds of streams have."""

    def __init__(self, head: Head, n_choices: int, *, includes_usage: bool, kind: str) -> None:
        self._head: dict[str, Any] = {
            "id": head.id,
            "object": kind,
            "created": head.created,
            "model": head.model,
        }
        self._n = head.n
        self._includes_usage = includes_usage
        self._usages: list[Usage] = []
        # Choices that have not ended: a model's stream may end and not say why.
        self.open = dict.fromkeys(range(n_choices))

    def index_of(self, prompt: int, chunk: GenerationChunk) -> int:
        """Note what a chunk of the model says, and give the number of its choice."""
        if chunk.usage is not None:
            self._usages.append(chunk.usage)
        index = prompt * self._n + chunk.index
        if chunk.finish_reason is not None:
            self.open.pop(index, None)
        return index

    def event(self, choice: dict[str, Any]) -> bytes:
        """Make the chunk of one choice."""
        body = {**self._head, "choices": [choice]}
        if self._includes_usage:
            body["usage"] = None
        return to_json(body)

    def last(self) -> list[bytes]:
        """Make the chunk that says what the stream took, if one was asked for."""
        if not self._includes_usage:
            return []
        return [to_json({**self._head, "choices": [], "usage": usage_of(self._usages)})]


class ChatWriter:
    """
    Makes the chunks of messages.

    Args:
        head: What stands in each.
        includes_usage: Whether the last one says what it took.
    """

    def __init__(self, head: Head, *, includes_usage: bool) -> None:
        self._written = _Written(
            head, head.n, includes_usage=includes_usage, kind="chat.completion.chunk"
        )
        self._begun: set[int] = set()

    def chunk(self, prompt: int, chunk: GenerationChunk) -> list[bytes]:
        """Make the chunks of a piece: the role before it, the reason behind it."""
        index = self._written.index_of(prompt, chunk)
        events = self._beginning(index)
        delta: dict[str, Any] = {}
        if chunk.text or chunk.logprobs:
            delta["content"] = chunk.text
        if chunk.tool_calls:
            delta["tool_calls"] = chunk.tool_calls
        if delta:
            events.append(self._event(index, delta, chunk))
        if chunk.finish_reason is not None:
            events.append(self._event(index, {}, None, chunk.finish_reason))
        return events

    def end(self) -> list[bytes]:
        """Make the ends that are missing, and what it took."""
        events = []
        for index in self._written.open:
            events += self._beginning(index)
            events.append(self._event(index, {}, None, "stop"))
        return events + self._written.last()

    def _beginning(self, index: int) -> list[bytes]:
        if index in self._begun:
            return []
        self._begun.add(index)
        return [self._event(index, {"role": "assistant", "content": ""})]

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        chunk: GenerationChunk | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        tokens = None if chunk is None else chunk.logprobs
        logprobs = None if tokens is None else chat_logprobs(tokens)
        return self._written.event(
            {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        )


class CompletionWriter:
    """
    Makes the chunks of texts.

    Args:
        head: What stands in each.
        n_prompts: How many prompts there are.
        includes_usage: Whether the last one says what it took.
    """

    def __init__(self, head: Head, n_prompts: int, *, includes_usage: bool) -> None:
        self._written = _Written(
            head, n_prompts * head.n, includes_usage=includes_usage, kind="text_completion"
        )
        self._lengths: dict[int, int] = {}

    def chunk(self, prompt: int, chunk: GenerationChunk) -> list[bytes]:
        """Make the chunk of a piece; none of one that says nothing."""
        index = self._written.index_of(prompt, chunk)
        offset = self._lengths.get(index, 0)
        self._lengths[index] = offset + len(chunk.text)
        if not (chunk.text or chunk.logprobs or chunk.finish_reason):
            return []
        tokens = chunk.logprobs
        logprobs = None if tokens is None else completion_logprobs(tokens, offset)
        return [self._event(index, chunk.text, logprobs, chunk.finish_reason)]

    def end(self) -> list[bytes]:
        """Make the ends that are missing, and what it took."""
        events = [self._event(index, "", None, "stop") for index in self._written.open]
        return events + self._written.last()

    def _event(self, index: int, text: str, logprobs: Any, finish_reason: str | None) -> bytes:
        return self._written.event(
            {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        )
