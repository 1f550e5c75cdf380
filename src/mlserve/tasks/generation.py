"""Text generation: a prompt or a conversation in, text out, whole or piece by piece."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Choice",
    "FinishReason",
    "Generation",
    "GenerationChunk",
    "GenerationRequest",
    "Message",
    "ResponseFormat",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
]

FinishReason = Literal["stop", "length", "tool_calls"]

_MAX_CHARACTERS = 1_000_000
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_TokenId = Annotated[int, Field(ge=0)]


class Message(BaseModel):
    """One turn of a conversation, as chat templates take it."""

    model_config = ConfigDict(extra="forbid")

    role: str = Field(max_length=64, description="`system`, `user`, `assistant` or `tool`.")
    content: str | None = Field(default=None, max_length=_MAX_CHARACTERS)
    name: str | None = Field(default=None, max_length=256)
    tool_calls: list[dict[str, Any]] | None = Field(
        default=None, description="What an earlier answer of the model asked for."
    )
    tool_call_id: str | None = Field(default=None, description="Which call this is the answer of.")


class ResponseFormat(BaseModel):
    """What the text has to look like."""

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = Field(
        default=None, description="The JSON schema itself, for `json_schema`."
    )

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if (self.type == "json_schema") is not (self.json_schema is not None):
            raise ValueError("`json_schema` is to be given with type `json_schema`, and only then")
        return self


class GenerationRequest(BaseModel):
    """
    What to go on from, and how.

    Exactly one of `prompt` and `messages` is given. What is `None` is as the model's own generation
    configuration says.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: (
        Annotated[str, Field(min_length=1, max_length=_MAX_CHARACTERS)]
        | Annotated[list[_TokenId], Field(min_length=1, max_length=_MAX_CHARACTERS)]
        | None
    ) = Field(default=None, description="Text, or ids of tokens, to go on from.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)] | None = Field(
        default=None, description="A conversation; the model's chat template is applied."
    )
    tools: list[dict[str, Any]] | None = Field(
        default=None, max_length=128, description="Functions to offer to the chat template."
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int | None = Field(
        default=None, ge=1, description="At most so many new tokens; else what the context leaves."
    )
    temperature: float | None = Field(default=None, ge=0, le=100, description="0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, description="0 = all tokens.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=1024, description="Is added to the logits, by token id."
    )
    seed: int | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="Choice i is sampled from seed + i."
    )
    n: int = Field(default=1, ge=1, le=128, description="How many choices.")
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    stop: list[_Stop] = Field(
        default_factory=list, max_length=16, description="Texts that end the answer; cut from it."
    )
    stop_token_ids: list[_TokenId] = Field(default_factory=list, max_length=64)
    ignore_eos: bool = Field(default=False, description="Go on to `max_tokens`.")
    echo: bool = Field(default=False, description="Repeat the prompt before the answer.")
    response_format: ResponseFormat = Field(default_factory=ResponseFormat)

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if (self.prompt is None) is (self.messages is None):
            raise ValueError("exactly one of `prompt` and `messages` is to be given")
        return self


class TopLogprob(BaseModel):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that came, with how likely it was: natural logarithms, before sampling options."""

    top_logprobs: list[TopLogprob] = []


class Usage(BaseModel):
    """What a request took, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = Field(default=0, description="Of the prompt: computed before.")


class GenerationChunk(BaseModel):
    """A piece of one choice."""

    index: int = Field(default=0, description="Which choice.")
    text: str = ""
    logprobs: list[TokenLogprob] | None = None
    tool_calls: list[dict[str, Any]] | None = Field(
        default=None, description="Pieces of tool calls, as the OpenAI protocol streams them."
    )
    finish_reason: FinishReason | None = Field(default=None, description="With the last piece.")
    usage: Usage | None = Field(default=None, description="With the last piece of the last choice.")


class Choice(BaseModel):
    """One whole answer."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Generation(BaseModel):
    """All answers to one request."""

    choices: list[Choice]
    usage: Usage
