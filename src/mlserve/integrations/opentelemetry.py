"""
Exporting the spans of a process by OTLP, as the standard variables of OpenTelemetry say.

Needs the extra `otel`.
"""

import atexit
import os
import threading

from opentelemetry import trace

from mlserve.errors import ConfigurationError

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as exc:
    raise ImportError(
        "`mlserve.integrations.opentelemetry` needs OpenTelemetry's SDK and its exporter, which are"
        " not installed. Run: pip install 'mlserve[otel]'"
    ) from exc

__all__ = ["configure_from_environment"]

_SERVICE = "mlserve"
_NAMELESS = "unknown_service"
_LAST_S = 3.0
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def configure_from_environment() -> None:
    """
    Make the provider of tracers that exports by OTLP over HTTP; one that is there already stays.

    Endpoint, headers, sampler, service name and all else are read by the SDK itself, from the
    variables that it documents. At its end the process waits three seconds for what is left.

    Raises:
        ConfigurationError: If the variables ask for another exporter or protocol.
    """
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    protocol = next(filter(None, map(os.environ.get, _PROTOCOLS)), "http/protobuf")
    if exporter != "otlp" or protocol != "http/protobuf":
        raise ConfigurationError(
            f"Traces are exported by `otlp` over `http/protobuf`, not by {exporter!r} over"
            f" {protocol!r}. Configure another exporter in the module of your server."
        )
    resource = Resource.create({"process.pid": os.getpid()})
    if str(resource.attributes.get("service.name", _NAMELESS)).startswith(_NAMELESS):
        resource = resource.merge(Resource({"service.name": _SERVICE}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _shut_down_at_exit(provider)


def _shut_down_at_exit(provider: TracerProvider) -> None:
    """Export what is left at the end of the process, which waits three seconds for that."""
    # The thread is there before it is needed: at its end an interpreter starts none.
    is_ending, has_ended = threading.Event(), threading.Event()

    def end() -> None:
        is_ending.wait()
        provider.shutdown()
        has_ended.set()

    threading.Thread(target=end, name="mlserve-traces", daemon=True).start()

    @atexit.register
    def wait() -> None:
        is_ending.set()
        has_ended.wait(_LAST_S)
