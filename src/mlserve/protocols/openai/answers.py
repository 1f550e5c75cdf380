"""
What the protocol's clients get: types for OpenAPI, and the making of whole answers. Pure.

Source: the OpenAI API reference and the types of openai 3.57.
"""

import base64
import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from mlserve.errors import InvalidInputError, ModelOutputError
from mlserve.tasks.embedding import Embedding
from mlserve.tasks.generation import Choice, Generation, TokenLogprob, Usage

__all__ = [
    "ChatCompletion",
    "Completion",
    "EmbeddingList",
    "Head",
    "chat_answer",
    "chat_logprobs",
    "completion_answer",
    "completion_logprobs",
    "embeddings_answer",
    "to_json",
    "usage_of",
]

_LEAST = -9999.0  # how OpenAI writes what is impossible: JSON has no infinity


class PromptDetails(TypedDict):
    """What the prompt took."""

    cached_tokens: int


class UsageBody(TypedDict):
    """What a request took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TokenBody(TypedDict):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: NotRequired[list[Any]]


class ChatLogprobs(TypedDict):
    """How likely the tokens of a message were."""

    content: list[TokenBody]
    refusal: None


class AnswerMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[dict[str, Any]]]


class ChatChoice(TypedDict):
    """One whole message."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(TypedDict):
    """The messages that answer a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class CompletionLogprobs(TypedDict):
    """How likely the tokens of a text were."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One whole text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str


class Completion(TypedDict):
    """The texts that go on from prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class EmbeddingBody(TypedDict):
    """The vector of one text: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    """What a request took, in tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """The vectors of all texts, in their order."""

    object: Literal["list"]
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsage


@dataclass(frozen=True, slots=True)
class Head:
    """What stands in an answer whatever the model says."""

    id: str
    created: int
    """In seconds since 1970."""
    model: str
    """The model as the client has named it."""
    n: int = 1
    """How many choices each prompt has."""


def to_json(value: Any) -> bytes:
    """
    Write an answer as JSON, UTF-8.

    Raises:
        ModelOutputError: If it holds NaN or half a character.
    """
    try:
        return json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
    except ValueError as exc:
        raise ModelOutputError("The handler's output cannot be written as JSON.") from exc


def usage_of(usages: Iterable[Usage]) -> UsageBody:
    """Add up what the prompts of a request took."""
    known = list(usages)
    prompt = sum(usage.prompt_tokens for usage in known)
    completion = sum(usage.completion_tokens for usage in known)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in known)},
    }


def chat_answer(head: Head, generation: Generation) -> ChatCompletion:
    """Make the answer to a conversation."""
    return {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [_chat_choice(choice) for choice in generation.choices],
        "usage": usage_of([generation.usage]),
    }


def _chat_choice(choice: Choice) -> ChatChoice:
    message: AnswerMessage = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = choice.tool_calls
    return {
        "index": choice.index,
        "message": message,
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason,
    }


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> ChatLogprobs:
    """Say how likely the tokens of a message, or of a piece of it, were."""
    content: list[TokenBody] = [
        {
            "token": token.token,
            "logprob": _finite(token.logprob),
            "bytes": token.bytes,
            "top_logprobs": [
                {"token": top.token, "logprob": _finite(top.logprob), "bytes": top.bytes}
                for top in token.top_logprobs
            ],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_answer(head: Head, generations: Sequence[Generation]) -> Completion:
    """Make the answer to prompts; the choices of the second follow those of the first."""
    return {
        "id": head.id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": [
            {
                "index": number * head.n + choice.index,
                "text": choice.text,
                "logprobs": None
                if choice.logprobs is None
                else completion_logprobs(choice.logprobs, 0),
                "finish_reason": choice.finish_reason,
            }
            for number, generation in enumerate(generations)
            for choice in generation.choices
        ],
        "usage": usage_of(generation.usage for generation in generations),
    }


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    """
    Say how likely the tokens of a text, or of a piece of it, were.

    Args:
        tokens: The tokens.
        offset: At which character of the text the first of them begins.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [
            {top.token: _finite(top.logprob) for top in token.top_logprobs} for token in tokens
        ],
        "text_offset": offsets,
    }


def embeddings_answer(
    model: str, embeddings: Sequence[Embedding], *, dimensions: int | None, is_base64: bool
) -> EmbeddingList:
    """
    Make the answer to texts.

    Args:
        model: The model as the client has named it.
        embeddings: The vectors, in the order of the texts.
        dimensions: How many numbers of each are kept; what is left is scaled to length 1.
        is_base64: Whether they are written as little-endian float32 in base64.

    Raises:
        InvalidInputError: If the vectors have fewer dimensions.
        ModelOutputError: If a number is too large for float32.
    """
    vectors = [_shortened(embedding.embedding, dimensions) for embedding in embeddings]
    n_tokens = sum(embedding.tokens for embedding in embeddings)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _as_base64(vector) if is_base64 else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise InvalidInputError(
            f"`dimensions` must be at most {len(vector)}, which the model's vectors have, got"
            f" {dimensions}.",
            param="dimensions",
        )
    kept = vector[:dimensions]
    largest = max(map(abs, kept))
    if not largest:
        return kept
    scaled = [value / largest for value in kept]  # the smallest numbers have no length
    length = math.hypot(*scaled)
    return [value / length for value in scaled]


def _as_base64(vector: list[float]) -> str:
    if not all(map(math.isfinite, vector)):
        raise ModelOutputError("The handler's vector holds NaN or infinity.")
    try:
        packed = struct.pack(f"<{len(vector)}f", *vector)
    except (OverflowError, struct.error) as exc:
        raise ModelOutputError("The handler's vector cannot be written as float32.") from exc
    return base64.b64encode(packed).decode()


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
