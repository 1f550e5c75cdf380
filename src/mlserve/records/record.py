"""One answered request as the sinks get it. Pure."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from mlserve.observability.listeners import Ended

__all__ = ["InferenceRecord", "payload_bytes", "record_of", "slimmed"]

_process = os.urandom(8).hex()
_numbers = itertools.count(1)
_LONGEST_PAYLOAD_BYTES = 2**20
_MAX_INT = 2**63 - 1
_NOT_JSON = "invalid_json"
_DATA, _DONE = b"data: ", b"[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRecord:
    """A request that has its answer, whatever that is."""

    id: str
    """What no other record has, also of other processes."""
    request_id: str
    """The id in the answer and in the access log; clients may give one twice."""
    model: str
    """The model's name."""
    version: str
    """Its version."""
    time: datetime
    """When it ended, in UTC."""
    status: int
    """The HTTP status; 499 if the client left before there was one."""
    code: str | None = None
    """The error's code; `None` without one."""
    is_stream: bool = False
    """Whether it was answered by a stream."""
    key: str | None = None
    """The name of the API key that it came with."""
    bytes_in: int = 0
    """The size of the request's body."""
    bytes_out: int = 0
    """The size of the answer's body."""
    total_ms: float = 0.0
    """From the head of the request to the end of its answer, in milliseconds."""
    queue_ms: float = 0.0
    """Waiting for a replica."""
    preprocess_ms: float = 0.0
    """In `preprocess`, `cost` and `batch_key`."""
    infer_ms: float = 0.0
    """The whole batch's time in `infer`."""
    postprocess_ms: float = 0.0
    """In `postprocess` and the validation of the output."""
    batch_size: int = 0
    """How many requests were in the batch."""
    chunks: int = 0
    """How many chunks were sent."""
    tokens: int = 0
    """How many tokens were read and written."""
    annotations: Mapping[str, Any]
    """What hooks have noted with `call.annotate`."""
    request: str | None = None
    """The request's body as JSON text, if payloads are kept and it is JSON of at most 1 MiB."""
    response: str | None = None
    """The answer's body, likewise; of a stream a JSON list of its events."""


def record_of(ended: Ended, *, keep_payloads: bool) -> InferenceRecord:
    """
    Make the record of a request.

    Args:
        ended: The request.
        keep_payloads: Whether it gets the bodies.
    """
    line = ended.line
    is_kept = keep_payloads and line["code"] != _NOT_JSON
    return InferenceRecord(
        id=f"{_process}-{next(_numbers):x}",
        request_id=line["request_id"],
        model=line["model"],
        version=line["version"],
        time=datetime.fromtimestamp(ended.at, UTC),
        status=line["status"],
        code=line["code"],
        is_stream=ended.is_stream,
        key=ended.key,
        bytes_in=line["bytes_in"],
        bytes_out=line["bytes_out"],
        total_ms=line["total_ms"],
        queue_ms=line["queue_ms"],
        preprocess_ms=line["preprocess_ms"],
        infer_ms=line["infer_ms"],
        postprocess_ms=line["postprocess_ms"],
        batch_size=line["batch_size"],
        chunks=line["chunks"],
        tokens=max(0, min(line["tokens"], _MAX_INT)),  # hooks note what they like
        annotations=dict(ended.annotations),  # a hook that runs on may note something yet
        request=_text(ended.request) if is_kept else None,
        response=_answer_text(ended) if is_kept else None,
    )


def slimmed(ended: Ended, *, keep_payloads: bool) -> Ended:
    """Give a request without those bodies that its record will not have, so that it can wait."""
    if ended.request is None and ended.response is None:
        return ended
    request, response = (
        body if keep_payloads and body and len(body) <= _LONGEST_PAYLOAD_BYTES else None
        for body in (ended.request, ended.response)
    )
    return replace(ended, request=request, response=response)


def payload_bytes(ended: Ended) -> int:
    """Say how much memory the bodies of a request take, in bytes."""
    return len(ended.request or b"") + len(ended.response or b"")


def _answer_text(ended: Ended) -> str | None:
    body = ended.response
    if body is None or not ended.is_stream or not body.startswith((_DATA, b":")):
        return _text(body)
    events = (event.removeprefix(_DATA) for event in body.split(b"\n\n") if event[:6] == _DATA)
    return _text(b"[%s]" % b",".join(event for event in events if event != _DONE))


def _text(body: bytes | None) -> str | None:
    if not body or len(body) > _LONGEST_PAYLOAD_BYTES or b"\0" in body:
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
