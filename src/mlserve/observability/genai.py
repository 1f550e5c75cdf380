"""
What OpenTelemetry's conventions for generative AI call things. Pure.

They are not stable yet, so their names stand here and nowhere else.

Source:
    OpenTelemetry semantic conventions for generative AI, spans, in development:
    https://github.com/open-telemetry/semantic-conventions-genai
"""

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["CHAT", "COMPLETION", "EMBEDDINGS", "attributes_of"]

CHAT: Final = "chat"
COMPLETION: Final = "text_completion"
EMBEDDINGS: Final = "embeddings"

_COUNTS = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}


def attributes_of(
    model: str, annotations: Mapping[str, Any], operation: str | None = None
) -> dict[str, str | int]:
    """
    Say in the words of the conventions what a request was for; nothing if it was for no tokens.

    Args:
        model: The model's name.
        annotations: What hooks have noted.
        operation: `chat`, `text_completion` or `embeddings`; `None` = by which tokens were noted.
    """
    counts = {
        attribute: annotations[kind]
        for kind, attribute in _COUNTS.items()
        if type(annotations.get(kind)) is int
    }
    if not counts:
        return {}
    writes = _COUNTS["completion_tokens"] in counts
    return {
        "gen_ai.operation.name": operation or (COMPLETION if writes else EMBEDDINGS),
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        **counts,
    }
