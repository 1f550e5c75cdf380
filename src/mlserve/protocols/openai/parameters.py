"""Which parameters are served, which do no harm, and which would change the answer. Pure."""

from collections.abc import Mapping
from typing import Any

from mlserve.errors import InvalidInputError, UnsupportedParameterError
from mlserve.protocols.openai.requests import ChatRequest, CompletionRequest, EmbeddingsRequest

__all__ = ["require_served"]

_HARMLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
_NEUTRAL: dict[str, Any] = {
    "function_call": "none",
    "functions": [],
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "suffix": "",
    "use_beam_search": False,
}
"""Parameters that are not served, each with the value that asks for nothing."""
_NOT_SAID: dict[str, Any] = {"annotations": [], "refusal": ""}
"""What clients send back of an answer's message that says nothing."""


def require_served(asked: ChatRequest | CompletionRequest | EmbeddingsRequest) -> None:
    """
    Refuse what would change the answer and cannot be done.

    Raises:
        UnsupportedParameterError: If there is such a parameter; it is named.
        InvalidInputError: If parameters do not fit each other.
    """
    _require_known(asked.model_extra or {}, _NEUTRAL, "")
    if isinstance(asked, EmbeddingsRequest):
        if not isinstance(asked.input[0], str):
            raise UnsupportedParameterError("input", "token ids are not served, only texts")
        return
    if asked.stream_options is not None and not asked.stream:
        raise InvalidInputError("`stream_options` go with `stream` only.", param="stream_options")
    if isinstance(asked, CompletionRequest):
        if asked.best_of is not None and asked.best_of != (asked.n or 1):
            raise UnsupportedParameterError("best_of")
        return
    for number, message in enumerate(asked.messages):
        _require_known(message.model_extra or {}, _NOT_SAID, f"messages.{number}.")
    if asked.tool_choice not in (None, "auto", "none"):
        raise UnsupportedParameterError("tool_choice", "only `auto` and `none` are served")
    if asked.top_logprobs and not asked.logprobs:
        raise InvalidInputError("`top_logprobs` go with `logprobs` only.", param="top_logprobs")


def _require_known(extra: Mapping[str, Any], neutral: Mapping[str, Any], where: str) -> None:
    for name, value in extra.items():
        is_neutral = value is None or (name in neutral and value == neutral[name])
        if not is_neutral and (where or name not in _HARMLESS):
            raise UnsupportedParameterError(where + name)
