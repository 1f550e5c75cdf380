"""From what clients send to the request types of the tasks. Pure."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from mlserve.errors import SchemaViolationError
from mlserve.model import safe_details
from mlserve.protocols.openai.requests import (
    AskedFormat,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
)

__all__ = ["payloads_of"]

_SAME = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "n",
    "stop",
    "stop_token_ids",
    "ignore_eos",
}
"""What a request for text calls by the same name as the task does."""


def payloads_of(
    asked: ChatRequest | CompletionRequest | EmbeddingsRequest, adapter: TypeAdapter[Any]
) -> list[Any]:
    """
    Make the requests of a model that a client's request stands for, one per prompt or text.

    Args:
        asked: What the client has sent.
        adapter: Validates the model's request type.

    Raises:
        SchemaViolationError: If the model's request type does not take it; it is told by the
            names that the client has used.
    """
    if isinstance(asked, EmbeddingsRequest):
        names = {"text": "input"}
        values = [{"text": text} for text in asked.input]
    elif isinstance(asked, ChatRequest):
        names = (
            {} if asked.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
        )
        values = [_conversation(asked)]
    else:
        names = {"top_logprobs": "logprobs"}
        options = _options(asked) | _completion(asked)
        values = [{**options, "prompt": prompt} for prompt in asked.prompt]
    return [_validated(adapter, value, names) for value in values]


def _conversation(asked: ChatRequest) -> dict[str, Any]:
    values = _options(asked)
    values["messages"] = [_message(message) for message in asked.messages]
    if asked.max_completion_tokens is not None:
        values["max_tokens"] = asked.max_completion_tokens
    if asked.logprobs:
        values["logprobs"] = True
        values["top_logprobs"] = asked.top_logprobs or 0
    if asked.tools and asked.tool_choice != "none":
        values["tools"] = [tool.model_dump() for tool in asked.tools]
    if asked.chat_template_kwargs:
        values["chat_template_kwargs"] = asked.chat_template_kwargs
    return values


def _completion(asked: CompletionRequest) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if asked.logprobs is not None:
        values |= {"logprobs": True, "top_logprobs": asked.logprobs}
    if asked.echo:
        values["echo"] = True
    return values


def _options(asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
    values = asked.model_dump(include=_SAME | {"max_tokens"}, exclude_none=True)
    if asked.response_format is not None:
        values["response_format"] = _format(asked.response_format)
    return values


def _message(message: ChatMessage) -> dict[str, Any]:
    fields = set(ChatMessage.model_fields)
    values = message.model_dump(include=fields, exclude_none=True)
    if message.role == "developer":  # OpenAI's newer name, which chat templates do not know
        values["role"] = "system"
    return values


def _format(asked: AskedFormat) -> dict[str, Any]:
    if asked.json_schema is None:
        return {"type": asked.type}
    return {"type": asked.type, "json_schema": asked.json_schema.schema_}


def _validated(adapter: TypeAdapter[Any], value: Any, names: dict[str, str]) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as exc:
        details = safe_details(exc, "body")
        for detail in details:
            where = detail["loc"]
            if isinstance(where, list) and len(where) > 1:
                where[1] = names.get(where[1], where[1])
        raise SchemaViolationError(details, exc.error_count()) from exc
