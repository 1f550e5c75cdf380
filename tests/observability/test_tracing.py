"""What is traced without a server: whether to export, and the words of the conventions."""

import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from tests.observability.spans import Spans

from mlserve.batching.report import BatchReport
from mlserve.observability import genai, tracing

URL = "http://127.0.0.1:4318"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "reviews"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": URL}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": URL}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": URL}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": URL}, False),
        ({"OTEL_SDK_DISABLED": "false", "OTEL_EXPORTER_OTLP_ENDPOINT": URL}, True),
    ],
)
def test_traces_are_exported_where_the_standard_variables_ask_for_it(
    environment: dict[str, str], wanted: bool
) -> None:
    assert tracing.is_export_wanted(environment) is wanted


def test_a_missing_package_is_said_with_its_extra_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", URL)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "mlserve.integrations.opentelemetry", raising=False)

    with caplog.at_level(logging.WARNING):
        tracing.configure_export()

    assert "pip install 'mlserve[otel]'" in caplog.text
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def test_a_provider_that_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = Spans(monkeypatch)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", URL)

    tracing.configure_export()

    assert trace.get_tracer_provider() is spans.provider


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.sampled_from([0, 1]))
def test_a_span_is_found_again_by_what_is_sent_of_it(
    trace_id: int, span_id: int, flags: int
) -> None:
    context = SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(flags))

    sent = tracing.traceparent_of(NonRecordingSpan(context))

    assert sent is not None
    assert len(sent) == 55
    found = tracing._context_of(sent)
    assert (found.trace_id, found.span_id, found.trace_flags) == (trace_id, span_id, flags)


def test_a_batch_of_requests_that_nobody_keeps_has_no_span(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans = Spans(monkeypatch)
    kept, dropped = (f"00-{'a' * 32}-{'b' * 16}-0{flag}" for flag in (1, 0))

    tracing.trace_batch("m", "v1", [dropped], [1], BatchReport())
    tracing.trace_batch("m", "v1", [dropped, kept], [1, 1], BatchReport(has_failed=True))

    [batch] = spans.all()
    assert len(batch.links) == 1
    assert not batch.status.is_ok


@pytest.mark.parametrize(
    ("annotations", "operation", "name"),
    [
        ({"prompt_tokens": 1}, None, "embeddings"),
        ({"prompt_tokens": 1, "completion_tokens": 0}, None, "text_completion"),
        ({"completion_tokens": 2}, genai.CHAT, "chat"),
    ],
)
def test_an_operation_is_what_its_route_says_or_its_tokens(
    annotations: dict[str, Any], operation: str | None, name: str
) -> None:
    told = genai.attributes_of("m", annotations, operation)

    assert told["gen_ai.operation.name"] == name
    assert told["gen_ai.request.model"] == "m"


@pytest.mark.parametrize("annotations", [{}, {"prompt_tokens": "3"}, {"language": "en"}])
def test_a_request_without_tokens_is_none_of_generative_ai(annotations: dict[str, Any]) -> None:
    assert genai.attributes_of("m", annotations, genai.CHAT) == {}
