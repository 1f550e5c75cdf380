"""Spans that are kept in memory, by a provider that is in force for one test."""

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanContext
from tests.http.waiting import until


def context_of(span: ReadableSpan) -> SpanContext:
    """Give a span's identity."""
    context = span.get_span_context()
    assert context is not None
    return context


class Spans:
    """What was traced so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        # A provider may be set once in the life of a process, and a test should leave none behind.
        monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", self.provider)

    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """Wait until there is a span of that name, which has to be the only one."""
        until(lambda: bool(self.named(name)))
        [span] = self.named(name)
        return span

    def children_of(self, span: ReadableSpan) -> list[str]:
        """Give the names of the spans below one, in the order in which they began."""
        span_id = context_of(span).span_id
        below = [s for s in self.all() if s.parent is not None and s.parent.span_id == span_id]
        return [s.name for s in sorted(below, key=lambda s: s.start_time or 0)]
