"""
Telling the calls of tools from the text of an answer, while it is being written.

Uses transformers' `ResponseParser`, with the template that a tokenizer brings (`response_template`)
or, for the many models that write `<tool_call>{…}</tool_call>`, with one of our own.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers.utils.chat_parsing import ResponseParser

from mlserve.observability.loggers import get_logger
from mlserve.tasks.generation import FinishReason

__all__ = ["Pieces", "ToolReader", "response_template_of"]

logger = get_logger(__name__)

# As Hermes 2 Pro has introduced it, and Qwen, SmolLM3 and others write it; see
# https://github.com/NousResearch/Hermes-Function-Calling#prompt-format-for-function-calling.
_TAGGED = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"content": "text"},
    },
}


@dataclass(slots=True)
class Pieces:
    """What is new in an answer."""

    text: str = ""
    """What is text."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """Whole calls, with the index, id, name and arguments (JSON) of each."""


def response_template_of(tokenizer: Any) -> dict[str, Any] | None:
    """Find how a model writes its calls of tools; `None` = nobody knows."""
    template = getattr(tokenizer, "response_template", None)
    if isinstance(template, dict):
        return template
    return _TAGGED if "<tool_call>" in str(getattr(tokenizer, "chat_template", "")) else None


class ToolReader:
    """
    Reads one answer. In one thread at a time.

    Args:
        template: How the model writes its calls.
        tools: What the request has offered, as chat templates take it.
        prefix: The prompt, of which some templates hold the answer's beginning.
    """

    def __init__(
        self, template: dict[str, Any], tools: list[dict[str, Any]], prefix: str = ""
    ) -> None:
        self.n_calls = 0
        """How many calls there were."""
        self._parser: ResponseParser | None = ResponseParser(template, prefix, tools=list(tools))
        self._close = str(template["fields"].get("tool_calls", {}).get("close") or "")
        self._unread = ""
        self._n_looked = 0

    def feed(self, text: str) -> Pieces:
        """Take what was written, and give what of it is known to be text or a whole call."""
        self._unread += text
        return self._read(lambda parser: parser.feed(text))

    def finish(self) -> Pieces:
        """Give what is left at the answer's end; a call that was not ended is text."""
        pieces = self._read(lambda parser: parser.finalize()[1])
        self._parser = None
        return pieces

    def told(
        self, text: str, reason: FinishReason | None
    ) -> tuple[str, list[dict[str, Any]], FinishReason | None]:
        """Tell text from calls, up to the answer's end if there is a reason for it."""
        pieces = self.feed(text)
        if reason is not None:
            rest = self.finish()
            pieces.text += rest.text
            pieces.tool_calls += rest.tool_calls
            reason = "tool_calls" if reason == "stop" and self.n_calls else reason
        return pieces.text, pieces.tool_calls, reason

    def _read(self, events_of: Callable[[ResponseParser], list[dict[str, Any]]]) -> Pieces:
        pieces = Pieces()
        try:
            if self._parser is not None:
                for event in events_of(self._parser):
                    self._take(event, pieces)
        except Exception as exc:  # noqa: BLE001 - the model has written what nobody can read
            logger.info("tools.unreadable: %s", exc)
            self._parser = None
        if self._parser is None:  # all that was held back, and what follows, is text
            pieces.text += self._unread
            self._unread = ""
        return pieces

    def _take(self, event: dict[str, Any], pieces: Pieces) -> None:
        if event["type"] == "region_chunk" and (text := event.get("text")):
            while self._unread.find(text, self._n_looked) < 0:
                text = text[1:]  # it began in the prompt
            self._n_looked = self._unread.find(text, self._n_looked) + len(text)
            if not event.get("dirty"):
                pieces.text += text
                self._forget()
        elif event["type"] == "region_close" and event["field"] == "tool_calls":
            values = event["value"] if isinstance(event["value"], list) else [event["value"]]
            pieces.tool_calls += [self._call(value) for value in values]
            self._forget()
            end = self._unread.find(self._close)
            self._unread = self._unread[end + len(self._close) :] if end >= 0 else self._unread

    def _forget(self) -> None:
        """Hold back no longer what was looked at."""
        self._unread, self._n_looked = self._unread[self._n_looked :], 0

    def _call(self, value: Any) -> dict[str, Any]:
        function = value.get("function", value)
        arguments = function.get("arguments", function.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        call = {
            "index": self.n_calls,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": str(function["name"]), "arguments": arguments},
        }
        self.n_calls += 1
        return call

    def __repr__(self) -> str:
        return f"<ToolReader {self.n_calls} calls, {len(self._unread)} characters held back>"
