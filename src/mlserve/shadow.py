"""
Copies of answered requests for a version that is tried out: run, compared, counted, logged.

They begin once the answer is sent, wait behind every request of a client, and are few at a time.
What becomes of them reaches nobody but the log and the metrics.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from mlserve.comparison import Difference, compare
from mlserve.errors import MLServeError
from mlserve.execution.worker import TaskSet
from mlserve.handler import Call
from mlserve.job import Job, StageTimes
from mlserve.model import Model
from mlserve.observability.listeners import Ended
from mlserve.observability.loggers import get_logger
from mlserve.observability.metrics import note_shadow
from mlserve.traffic import Shadow

__all__ = ["Copied", "ShadowCopies", "run_copy"]

logger = get_logger(__name__)

ResultT = TypeVar("ResultT")

_LAST = 9  # the lowest priority there is
_LONGEST_KEPT = 2**20  # as of answers: what waits must not fill the memory
_LONGEST_BYTES = 2**21
_INLINE_BYTES = 16_384
_NAMED = 5
_EVENT = b"data: "
_DONE = b"[DONE]"


class ShadowCopies:
    """
    Copies requests of one model to another version of it. Event loop only.

    Args:
        model: The version that gets the copies.
        options: How many, and how exactly answers are compared.
    """

    keeps_payloads = True

    def __init__(self, model: Model, options: Shadow) -> None:
        self.model = model
        self.options = options
        self._waiting: deque[Ended] = deque()
        self._tasks = TaskSet()
        self._n_running = 0
        contract = model.engine.spec.contract
        self._known = _declared_names(
            [output.json_schema() for output in (contract.response, contract.chunk)]
        )

    def note(self, ended: Ended) -> None:
        """
        Take in a request that was answered; a copy of it is run if there is room.

        Only what succeeded and came as JSON is copied.
        """
        line, contract = ended.line, self.model.engine.spec.contract
        can = contract.can_stream if ended.is_stream else contract.can_infer
        if line["status"] != 200 or line["code"] or ended.request is None or not can:
            return
        is_kept = ended.response is not None and len(ended.request) <= _LONGEST_KEPT
        if not (is_kept and self.model.engine.lifecycle.admits):
            self._count("dropped")
        elif self._n_running < self.options.max_running:
            self._n_running += 1
            self._tasks.spawn(self._run(ended))
        elif len(self._waiting) < self.options.max_waiting:
            self._waiting.append(ended)
        else:
            self._count("dropped")

    def cancel(self) -> None:
        """Drop all copies, those that run included."""
        self._waiting.clear()
        self._tasks.cancel()

    async def close(self) -> None:
        """Drop all copies and wait until none runs."""
        self.cancel()
        await self._tasks.close()

    async def wait_idle(self) -> None:
        """Wait until every copy is done."""
        await self._tasks.wait()

    async def _run(self, first: Ended) -> None:
        """Run one copy, and then those that wait."""
        ended: Ended | None = first
        try:
            while ended is not None:
                self._count(await self._outcome(ended))
                ended = self._waiting.popleft() if self._waiting else None
        finally:
            self._n_running -= 1

    async def _outcome(self, ended: Ended) -> str:
        try:
            copied = await run_copy(
                self.model,
                ended.request or b"",
                request_id=ended.line["request_id"],
                is_stream=ended.is_stream,
                timeout_s=self.options.timeout_s,
            )
            answer = copied.answer
            return await _beside(len(answer), lambda: self._compared(ended, answer))
        except Exception as exc:  # noqa: BLE001 - whatever it is, no client hears of it
            invalid = "validation_error" if isinstance(exc, ValidationError) else "model_error"
            code = exc.code if isinstance(exc, MLServeError) else invalid
            logger.info("shadow.copy.failed", extra={**self._about(ended), "code": code})
            return "failed"

    def _compared(self, ended: Ended, answer: bytes) -> str:
        options, read = self.options, _events if ended.is_stream else json.loads
        differences = compare(
            read(ended.response or b""),
            json.loads(answer),
            relative=options.relative,
            absolute=options.absolute,
        )
        if not differences:
            return "same"
        about = {
            "n_differences": len(differences),
            "places": [self._place(each) for each in differences[:_NAMED]],
        }
        logger.info("shadow.compare.differed", extra={**self._about(ended), **about})
        return "different"

    def _place(self, difference: Difference) -> str:
        """Name a place by what the response type declares: other keys may be a client's words."""
        parts = [
            part if isinstance(part, int) or part in self._known else "*"
            for part in difference.path
        ]
        return f"{Difference(tuple(parts), difference.kind).pointer or '/'} {difference.kind}"

    def _about(self, ended: Ended) -> dict[str, Any]:
        return {
            "request_id": ended.line["request_id"],
            "model": self.model.name,
            "version": ended.line["version"],
            "shadow": self.model.version,
        }

    def _count(self, outcome: str) -> None:
        note_shadow(self.model.name, self.model.version, outcome)

    def __repr__(self) -> str:
        return (
            f"<ShadowCopies {self.model.name}/{self.model.version}:"
            f" {self._n_running} running, {len(self._waiting)} waiting>"
        )


@dataclass(frozen=True, slots=True)
class Copied:
    """What a version has answered to a copy of a request."""

    answer: bytes
    """As JSON; of a stream the list of its chunks, as far as they fit into 2 MiB."""
    times: StageTimes
    """What that took."""


async def run_copy(
    model: Model, body: bytes, *, request_id: str, is_stream: bool, timeout_s: float | None = None
) -> Copied:
    """
    Run a copy of a request on a version; neither its log, its metrics nor its sinks are told.

    It waits behind every request of a client. Event loop only.

    Args:
        model: The version; it must be able to `stream` what was a stream, and else to `infer`.
        body: The request's body, JSON.
        request_id: The request's id.
        is_stream: Whether it was answered by a stream.
        timeout_s: How long it may take, in seconds; `None` = as long as the version's requests.

    Raises:
        pydantic.ValidationError: If the version does not take such requests.
        MLServeError: Why there is no answer.
    """
    engine = model.engine
    contract, limits = engine.spec.contract, engine.spec.limits
    payload = await _beside(len(body), lambda: contract.request.validate_json(body))
    longest_s = limits.stream_timeout_s if is_stream else limits.timeout_s
    budget_s = min(timeout_s or longest_s, longest_s)
    call = Call(request_id, timeout_s=budget_s, clock=engine.clock)
    job = Job(payload, call, timeout_s=budget_s, priority=_LAST)
    if not is_stream:
        return Copied(contract.response.encode(await engine.predict(job)), job.times)
    chunks: list[bytes] = []
    n_bytes = 0
    async with engine.stream(job) as stream:
        async for chunk in stream:
            chunks.append(contract.chunk.encode(chunk))
            n_bytes += len(chunks[-1])
            if n_bytes > _LONGEST_BYTES:
                break  # the client's answer was shorter: they differ
    return Copied(b"[%s]" % b",".join(chunks), job.times)


async def _beside(n_bytes: int, work: Callable[[], ResultT]) -> ResultT:
    """Do what takes long for large bodies where it does not hold up the event loop."""
    return work() if n_bytes <= _INLINE_BYTES else await asyncio.to_thread(work)


def _events(body: bytes) -> list[Any]:
    data = [block.removeprefix(_EVENT) for block in body.split(b"\n\n") if block[:6] == _EVENT]
    return [json.loads(each) for each in data if each != _DONE]


def _declared_names(schemas: list[Any]) -> set[str]:
    """Collect the names of all properties that some JSON schemas declare."""
    names: set[str] = set()
    open_values = list(schemas)
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            if isinstance(properties := value.get("properties"), dict):
                names |= properties.keys()
            open_values += value.values()
        elif isinstance(value, list):
            open_values += value
    return names
