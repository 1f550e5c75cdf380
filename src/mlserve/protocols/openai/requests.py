"""
What the protocol's clients send.

Source: the OpenAI API reference, `/chat/completions`, `/completions` and `/embeddings`; `top_k`,
`min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos` and `chat_template_kwargs` are those
of vLLM. What a number may be is said by the task's own request type, which it is put into.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = ["MAX_PROMPTS", "MAX_TEXTS", "ChatRequest", "CompletionRequest", "EmbeddingsRequest"]

MAX_PROMPTS = 128
"""How many prompts one request may have."""
MAX_TEXTS = 2048
"""How many texts one request may have embedded."""


class ContentPart(BaseModel):
    """A piece of a message; only text is served."""

    type: str
    text: str | None = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _joined(value: Any) -> Any:
    """Make one text of a list of text parts, one a line."""
    if not isinstance(value, list):
        return value
    return "\n".join(map(_text_of, value))


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind == "text" and isinstance(text, str):
        return text
    if isinstance(kind, str) and kind != "text":
        raise PydanticCustomError(
            "unsupported_content", "Only parts of type `text` are served, no images, audio or files"
        )
    raise PydanticCustomError("content_part", "A part should have the `type` `text` and a `text`")


def _prompts(value: Any) -> Any:
    """Make a list of prompts of any of the four forms: text or token ids, one or several."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        return value
    kinds = set(map(type, value))
    if kinds == {int}:
        return [value]
    are_ids = kinds == {list} and all(set(map(type, ids)) <= {int} for ids in value)
    if kinds != {str} and not are_ids:
        raise PydanticCustomError(
            "prompt",
            "Should be a text, a list of texts, a list of token ids or a list of such lists",
        )
    return value


_Texts = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
_Content = Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[ContentPart])]
_Prompts = Annotated[
    list[Any],
    Field(min_length=1),
    BeforeValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class StreamOptions(BaseModel):
    """How a stream is to be sent."""

    include_usage: bool | None = Field(
        default=None, description="Whether one more chunk, before the end, says what it took."
    )


class _Asked(BaseModel):
    """What every request may have; what it has besides is looked at by its name."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="A model's name, or its name and version: `chat:v2`.")


class _Sampled(_Asked):
    """What every request for generated text may have."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    n: int | None = None
    stop: _Texts | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream is to end with what it took."""
        return bool(self.stream_options is not None and self.stream_options.include_usage)


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Function(_Open):
    """A function that the model may ask for."""

    name: str = Field(min_length=1, max_length=64)


class Tool(_Open):
    """A tool that the model may ask for."""

    type: Literal["function"]
    function: Function


class ChatMessage(_Open):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Content | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class JsonSchema(BaseModel):
    """A JSON schema and its name."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class AskedFormat(BaseModel):
    """What the text has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(_Sampled):
    """A conversation to go on with."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        default=None, description="At most so many new tokens; before `max_tokens`."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: AskedFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Any = Field(default=None, description="`auto` or `none`.")
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(_Sampled):
    """One or several texts to go on from."""

    prompt: _Prompts = Field(max_length=MAX_PROMPTS)
    max_tokens: int | None = Field(default=16, description="At most so many new tokens.")
    logprobs: int | None = Field(
        default=None, ge=0, description="Of so many of the likeliest tokens at each place."
    )
    echo: bool | None = None
    best_of: int | None = Field(default=None, description="Nothing but `n` is served.")
    response_format: AskedFormat | None = None


class EmbeddingsRequest(_Asked):
    """One or several texts to make vectors of."""

    input: _Prompts = Field(max_length=MAX_TEXTS)
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="`base64` is little-endian float32."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="Keep the first so many numbers, scaled to length 1."
    )
