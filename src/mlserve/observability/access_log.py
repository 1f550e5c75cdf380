"""
The access log: one line per inference, on the logger `mlserve.access`.

The line is a JSON object; `AccessLogFormatter` writes the same facts for a person at a terminal.
No body, header, key or query string ever gets here.
"""

import json
import logging
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AccessLogFormatter", "InferenceLine", "JsonFormatter", "log_inference"]

logger = logging.getLogger("mlserve.access")

_OWN_KEYS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    "asctime",
    "color_message",
    "message",
    "taskName",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceLine:
    """The facts of one inference; times are in milliseconds, as the field writes them."""

    request_id: str
    model: str
    version: str
    status: int
    code: str | None
    bytes_in: int
    bytes_out: int
    total_ms: float
    queue_ms: float
    preprocess_ms: float
    infer_ms: float
    postprocess_ms: float
    batch_size: int
    chunks: int
    annotations: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Give the line's keys in their order; what hooks annotated comes last."""
        names = self.__dataclass_fields__
        line = {name: getattr(self, name) for name in names if name != "annotations"}
        return line | {key: value for key, value in self.annotations.items() if key not in line}


def log_inference(line: InferenceLine) -> None:
    """Write one line; costs nothing when the logger is off."""
    if logger.isEnabledFor(logging.INFO):
        values = line.as_dict()
        logger.info("%s", _as_json(values), extra={"inference": values})


class AccessLogFormatter(logging.Formatter):
    """Writes log records for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as readable text."""
        facts = getattr(record, "inference", None)
        if facts is None:
            text = super().format(record)
            extra = _extra_of(record)
            return f"{text} {extra}" if extra else text
        stages = ", ".join(
            f"{name} {facts[f'{name}_ms']:.1f}"
            for name in ("queue", "preprocess", "infer", "postprocess")
        )
        shape = f"{facts['chunks']} chunks" if facts["chunks"] else f"batch {facts['batch_size']}"
        code = f" {facts['code']}" if facts["code"] else ""
        return (
            f"{self.formatTime(record, '%H:%M:%S')} {facts['status']}{code}"
            f" {facts['model']}/{facts['version']} {facts['total_ms']:.1f} ms ({stages}; {shape})"
            f" {facts['request_id']}"
        )


class JsonFormatter(logging.Formatter):
    """Writes log records as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as JSON; what was given as `extra` stands beside the message."""
        facts = getattr(record, "inference", None)
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if facts is not None:
            return _as_json(line | facts)
        line["message"] = record.getMessage()
        line |= _extra_of(record)
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return _as_json(line)


def _extra_of(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_KEYS}


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, default=str)
