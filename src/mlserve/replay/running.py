"""Running recorded requests on a version, a few at a time. Event loop only."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from mlserve.errors import MLServeError, ModelError, SchemaViolationError
from mlserve.model import Model
from mlserve.observability.access_log import as_ms
from mlserve.records import InferenceRecord
from mlserve.records.redaction import REDACTED
from mlserve.replay.comparing import Answer, Outcome, Tolerance, judged
from mlserve.shadow import run_copy

__all__ = ["LOAD", "PROTOCOL", "Tally", "replay"]

PROTOCOL = "asked by a further protocol"
LOAD = "refused or given up for want of time or room"

# They say something of the load then, and nothing of the version.
_BY_LOAD = (429, 499, 502, 503, 504, 507)
_LONGEST_INLINE = 16_384
_OPENAI = ("chat.completion", "chat.completion.chunk", "text_completion", "list")


@dataclass(slots=True)
class Tally:
    """What came of the requests so far."""

    outcomes: list[Outcome] = field(default_factory=list)
    """One for each that was replayed."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many were not, by the reason."""
    n_redacted: int = 0
    """How many have something redacted in what they asked."""


async def replay(
    records: AsyncIterator[InferenceRecord],
    model: Model,
    tally: Tally,
    *,
    tolerance: Tolerance,
    concurrency: int,
    note: Callable[[], None] = lambda: None,
) -> None:
    """
    Run recorded requests on a version and compare the answers.

    Neither the log, the metrics nor the sinks of the version's server hear of them. Whoever
    cancels it finds in the tally what there is.

    Args:
        records: The requests, with payloads.
        model: The version; it must be ready.
        tally: Takes what comes of them.
        tolerance: How far numbers may differ.
        concurrency: How many run at once; no more than may wait for the model.
        note: Called after each record.

    Raises:
        ConfigurationError: If the records cannot be read.
    """
    turn = asyncio.Lock()  # a generator gives one at a time

    async def work() -> None:
        while True:
            async with turn:
                record = await anext(records, None)
            if record is None:
                return
            await _replay_one(record, model, tally, tolerance)
            note()

    n = max(1, min(concurrency, model.statistics().queue_capacity))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(n):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _replay_one(
    record: InferenceRecord, model: Model, tally: Tally, tolerance: Tolerance
) -> None:
    if record.status in _BY_LOAD:
        tally.left_out[LOAD] += 1
        return
    if '"model"' in (record.request or "") and _is_foreign(record):
        tally.left_out[PROTOCOL] += 1
        return
    tally.n_redacted += REDACTED in (record.request or "")
    answer = await _ask(record, model)
    if len(answer.body) + len(record.response or "") > _LONGEST_INLINE:
        outcome = await asyncio.to_thread(judged, record, answer, tolerance)
    else:
        outcome = judged(record, answer, tolerance)
    tally.outcomes.append(outcome)


async def _ask(record: InferenceRecord, model: Model) -> Answer:
    contract = model.engine.spec.contract
    if not (contract.can_stream if record.is_stream else contract.can_infer):
        return Answer(status=404, code="not_found")
    started = time.perf_counter()
    try:
        copied = await run_copy(
            model,
            (record.request or "").encode(),
            request_id=record.request_id,
            is_stream=record.is_stream,
        )
    except MLServeError as exc:
        return Answer(status=exc.status, code=exc.code)
    except ValidationError:
        return Answer(status=SchemaViolationError.status, code=SchemaViolationError.code)
    except Exception:  # noqa: BLE001 - user code may raise anything
        return Answer(status=ModelError.status, code=ModelError.code)
    return Answer(
        status=200,
        body=copied.answer,
        total_ms=as_ms(time.perf_counter() - started),
        infer_ms=as_ms(copied.times.infer_s),
        batch_size=copied.times.batch_size,
    )


def _is_foreign(record: InferenceRecord) -> bool:
    """Say whether a request came as OpenAI's clients ask: its body is none of the model's own."""
    request = _read(record.request)
    name = request.get("model") if isinstance(request, dict) else None
    if str(name).partition(":")[0] != record.model:
        return False
    response: Any = _read(record.response)
    first = response[0] if isinstance(response, list) and response else response
    is_error = record.status != 200 or record.code is not None
    return is_error or (isinstance(first, dict) and first.get("object") in _OPENAI)


def _read(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
