"""A model as user code sees it: what `Depends(server.model(...))` injects."""

import itertools
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from mlserve.engine import Engine
from mlserve.errors import (
    AbandonedError,
    ConfigurationError,
    MLServeError,
    SchemaViolationError,
)
from mlserve.handler import Call
from mlserve.job import Job
from mlserve.observability.access_log import inference_line
from mlserve.observability.listeners import Ended
from mlserve.observability.metrics import model_metrics
from mlserve.observability.tracing import start_call_span, trace_call, traceparent_of
from mlserve.spec import Factory
from mlserve.statistics import Statistics

__all__ = ["Model", "safe_details"]

_numbers = itertools.count(1)
_MAX_DETAILS = 10
_MAX_LISTED = 10_000
_LONGEST_PART = 64
_MAX_PARTS = 16
_LONGEST_MESSAGE = 200
_QUOTING_INPUT = {
    "import_error": "Input should be a valid import string",
    "union_tag_invalid": "Input tag does not match any of the expected tags",
}


class Model:
    """
    One loaded model; the same queue serves its HTTP routes and these methods.

    Use it on the event loop of the server that it belongs to.

    Args:
        engine: The model's life.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def name(self) -> str:
        """The name that it was added with."""
        return self.engine.spec.name

    @property
    def version(self) -> str:
        """Its version, such as `v1`."""
        return self.engine.spec.version

    @property
    def state(self) -> str:
        """Where it is in its life: `loading`, `warming`, `ready`, `draining`, `failed`, …."""
        return self.engine.lifecycle.state.value

    async def predict(
        self, request: Any, *, timeout_s: float | None = None, priority: int = 0
    ) -> Any:
        """
        Run one request through the queue.

        Args:
            request: An instance of the request type, or what can be validated as one.
            timeout_s: The whole budget in seconds; at most `Limits.timeout_s`.
            priority: 0 is served first, 9 last.

        Returns:
            An instance of the response type.

        Raises:
            MLServeError: Why there is no answer.
        """
        job = self._job(request, "predict", timeout_s, priority)
        with self._telling(job, is_stream=False):
            return await self.engine.predict(job)

    async def stream(
        self, request: Any, *, timeout_s: float | None = None, priority: int = 0
    ) -> AsyncIterator[Any]:
        """
        Yield the chunks of one request; leaving the iteration closes the handler's generator.

        Args:
            request: An instance of the request type, or what can be validated as one.
            timeout_s: The whole budget in seconds; at most `Limits.stream_timeout_s`.
            priority: 0 is served first, 9 last.

        Raises:
            MLServeError: Why there are no (more) chunks.
        """
        job = self._job(request, "stream", timeout_s, priority)
        metrics = model_metrics(self.name, self.version)
        last_at = time.perf_counter()
        with self._telling(job, is_stream=True):
            async with self.engine.stream(job) as stream:
                async for chunk in stream:
                    now = time.perf_counter()
                    metrics.note_chunk(now - last_at, is_first=job.times.chunks == 1)
                    last_at = now
                    yield chunk

    async def reload(self, handler: Factory | None = None) -> None:
        """
        Load the model anew beside the old one and swap them; no request is lost.

        Args:
            handler: Gives handlers of the same types as before; `None` = as it was added.

        Raises:
            Exception: What loading raised; the old one then goes on serving.
        """
        await self.engine.reload(handler)

    def statistics(self) -> Statistics:
        """Say what the model has done and is doing."""
        return self.engine.statistics()

    @contextmanager
    def _telling(self, job: Job, *, is_stream: bool) -> Iterator[None]:
        """Count a call, and tell those who keep records, as it is done for requests over HTTP."""
        started = time.perf_counter()
        status, code = 200, None
        span = start_call_span(self.name)
        job.call.traceparent = traceparent_of(span)
        try:
            yield
        except MLServeError as exc:
            status, code = exc.status, exc.code
            raise
        except BaseException:  # who has called it has left
            status, code = AbandonedError.status, AbandonedError.code
            raise
        finally:
            line = inference_line(
                request_id=job.call.request_id,
                model=self.name,
                version=self.version,
                status=status,
                code=code,
                total_s=time.perf_counter() - started,
                times=job.times,
                annotations=job.call.annotations,
            )
            model_metrics(self.name, self.version).note_request(line, job.call.annotations)
            if span is not None:
                trace_call(span, line, job.times, job.call.annotations)
            self.engine.listeners.tell(
                Ended(
                    line=line,
                    annotations=job.call.annotations,
                    at=time.time(),  # noqa: TID251 - the date that a record has
                    is_stream=is_stream,
                )
            )

    def _job(self, request: Any, hook: str, timeout_s: float | None, priority: int) -> Job:
        contract = self.engine.spec.contract
        if not (contract.can_infer if hook == "predict" else contract.can_stream):
            wanted = "infer" if hook == "predict" else "stream"
            raise ConfigurationError(f"Model `{self.name}` has no `{wanted}`.")
        try:
            payload = contract.request.validate_python(request)
        except ValidationError as exc:
            raise SchemaViolationError(safe_details(exc), exc.error_count()) from exc
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ValueError(f"`timeout_s` must be positive and finite, got {timeout_s!r}.")
        if priority not in range(10):
            raise ValueError(f"`priority` must be from 0 (first) to 9, got {priority!r}.")
        limits = self.engine.spec.limits
        longest_s = limits.timeout_s if hook == "predict" else limits.stream_timeout_s
        budget_s = longest_s if timeout_s is None else min(timeout_s, longest_s)
        call = Call(f"call-{next(_numbers)}", timeout_s=budget_s, clock=self.engine.clock)
        return Job(payload, call, timeout_s=budget_s, priority=priority)

    def __repr__(self) -> str:
        return f"<Model {self.name}/{self.version} {self.state}>"


def safe_details(
    error: ValidationError | Iterable[Mapping[str, Any]], source: str | None = None
) -> list[dict[str, object]]:
    """
    List what is wrong, at most ten entries, with neither the input's values nor context.

    Args:
        error: What pydantic found, or the entries of it.
        source: Where the input stood, such as `body`; the first part of each location.
    """
    if not isinstance(error, ValidationError):
        entries: Iterable[Mapping[str, Any]] = error
    elif error.error_count() > _MAX_LISTED:
        # pydantic lists all or none, and a million of them would hold the event loop for seconds.
        message = f"{error.error_count()} values do not fit the schema"
        return [{"type": "too_many_errors", "loc": [source] if source else [], "msg": message}]
    else:
        entries = error.errors(include_url=False, include_input=False, include_context=False)
    return [_safe_entry(entry, source) for entry in itertools.islice(entries, _MAX_DETAILS)]


def _safe_entry(entry: Mapping[str, Any], source: str | None) -> dict[str, object]:
    kind = str(entry.get("type", "value_error"))
    location = [
        part if isinstance(part, int) else str(part)[:_LONGEST_PART]
        for part in entry.get("loc", ())[:_MAX_PARTS]
    ]
    message = _QUOTING_INPUT.get(kind, str(entry.get("msg", "")))[:_LONGEST_MESSAGE]
    return {"type": kind, "loc": [source, *location] if source else location, "msg": message}
