"""
Spans of the stages of each request, and of each batch, by OpenTelemetry.

The span of the request itself is made by the web framework, or by whoever instruments it. Without
an SDK there is none, and nothing is done here.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, TraceFlags

from mlserve.errors import ConfigurationError
from mlserve.observability.access_log import InferenceLine
from mlserve.observability.genai import attributes_of
from mlserve.observability.loggers import get_logger

__all__ = [
    "BatchFacts",
    "StageMoments",
    "configure_export",
    "current_span",
    "hide_query",
    "is_export_wanted",
    "start_call_span",
    "trace_batch",
    "trace_call",
    "trace_request",
    "traceparent_of",
]

logger = get_logger(__name__)

_EXPORT = "mlserve.integrations.opentelemetry:configure_from_environment"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


_ERROR = 500


class StageMoments(Protocol):
    """When the stages of a request began, in monotonic seconds, and how long they took."""

    queue_at: float
    queue_s: float
    preprocess_at: float
    preprocess_s: float
    infer_at: float
    infer_s: float
    postprocess_at: float
    postprocess_s: float
    batch_size: int
    chunks: int


class BatchFacts(Protocol):
    """What became of a batch."""

    infer_at: float
    infer_s: float
    n_splits: int
    n_out_of_memory: int
    has_failed: bool


def is_export_wanted(environment: Mapping[str, str]) -> bool:
    """Say whether the standard variables ask for spans to be exported. Pure."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if is_off or exporter == "none":
        return False
    return bool(exporter) or any(environment.get(name) for name in _ENDPOINTS)


def configure_export() -> None:
    """
    Export this process's spans, if the standard variables ask for it.

    What is missing for that is logged: a server should not stay away since nobody can watch it.
    """
    if not is_export_wanted(os.environ):
        return
    try:
        resolve_name(_EXPORT)()  # by its name: what is optional is in a layer above this one
    except (ConfigurationError, ImportError) as exc:
        logger.warning("Traces are not exported. %s", exc)


def current_span() -> Span | None:
    """Give the span of what is being done now, if it is recorded."""
    span = trace.get_current_span()
    return span if span.is_recording() else None


def traceparent_of(span: Span | None) -> str | None:
    """
    Write a span's identity as it is sent to other processes.

    Source:
        W3C Trace Context, section 3.2: https://www.w3.org/TR/trace-context/
    """
    if span is None:
        return None
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def start_call_span(model: str) -> Span | None:
    """Begin the span of a call within the process, if what calls is traced."""
    parent = current_span()
    if parent is None:
        return None
    return _tracer().start_span(f"call {model}", trace.set_span_in_context(parent))


def trace_call(
    span: Span, line: InferenceLine, times: StageMoments, annotations: Mapping[str, Any]
) -> None:
    """End the span of a call within the process, as `trace_request` has it."""
    trace_request(span, line, times, annotations)
    if line["status"] >= _ERROR:
        span.set_status(trace.StatusCode.ERROR)
    span.end()


def trace_request(
    span: Span,
    line: InferenceLine,
    times: StageMoments | None,
    annotations: Mapping[str, Any],
    operation: str | None = None,
) -> None:
    """
    Note on a request's span what it was, and make a span of each of its stages.

    Args:
        span: The request's, which has not ended.
        line: The facts of the access log.
        times: When it was where; `None` = it did not come to the model.
        annotations: What hooks have noted.
        operation: What generative AI it was for, if its route says so.
    """
    about: dict[str, Any] = {
        "mlserve.request_id": line["request_id"],
        "mlserve.model": line["model"],
        "mlserve.version": line["version"],
        **attributes_of(line["model"], annotations, operation),
    }
    if line["code"] is not None:
        about["mlserve.code"] = line["code"]
    if line["batch_size"]:
        about["mlserve.batch_size"] = line["batch_size"]
    if line["chunks"]:
        about["mlserve.chunks"] = line["chunks"]
    span.set_attributes(about)
    if times is not None:
        _trace_stages(span, line, times)


def hide_query(span: Span) -> None:
    """Take the query string back, in which inputs may be sent and keys are, too."""
    span.set_attribute("url.query", "REDACTED")


def trace_batch(
    model: str, version: str, traceparents: Sequence[str], costs: Sequence[int], facts: BatchFacts
) -> None:
    """
    Make the span of a batch, in the process that ran it, with a link to each of its requests.

    Args:
        model: The model's name.
        version: Its version.
        traceparents: Of those of its requests that are traced.
        costs: What each of its requests costs.
        facts: What became of it.
    """
    found = [context for context in map(_context_of, traceparents) if context.trace_flags.sampled]
    if not found:
        return
    about: dict[str, str | int] = {
        "mlserve.model": model,
        "mlserve.version": version,
        "mlserve.batch_size": len(costs),
        "mlserve.batch_cost": sum(costs),
        "mlserve.batch_splits": facts.n_splits,
        "mlserve.out_of_memory": facts.n_out_of_memory,
    }
    at_ns = _unix_ns(facts.infer_at)
    span = _tracer().start_span(
        f"batch {model}",
        trace.set_span_in_context(trace.INVALID_SPAN),
        attributes=about,
        links=[Link(context) for context in found],
        start_time=at_ns,
    )
    if facts.has_failed:
        span.set_status(trace.StatusCode.ERROR)
    span.end(at_ns + int(facts.infer_s * 1e9))


def _trace_stages(span: Span, line: InferenceLine, times: StageMoments) -> None:
    tracer, parent = _tracer(), trace.set_span_in_context(span)
    about: dict[str, Any] = {
        "mlserve.model": line["model"],
        "mlserve.version": line["version"],
    }
    stages = [
        ("preprocess", times.preprocess_at, times.preprocess_s),
        ("queue", times.queue_at, times.queue_s),
        ("infer", times.infer_at, times.infer_s),
        ("postprocess", times.postprocess_at, times.postprocess_s),
    ]
    if times.chunks and not times.infer_at:
        begun_at = times.queue_at + times.queue_s
        stages.append(("stream", begun_at, time.monotonic() - begun_at))
    for name, at, took_s in stages:
        if at:
            at_ns = _unix_ns(at)
            stage = tracer.start_span(name, parent, attributes=about, start_time=at_ns)
            stage.end(at_ns + int(took_s * 1e9))


def _context_of(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )


def _unix_ns(monotonic_s: float) -> int:
    """Say when something was that the monotonic clock was read at; all processes have the same."""
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)


def _tracer() -> trace.Tracer:
    return trace.get_tracer("mlserve")
