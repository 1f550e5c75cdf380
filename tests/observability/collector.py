"""A collector of traces: takes what is exported by OTLP over HTTP, on a socket of this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.http.waiting import until


class Collector:
    """What has arrived so far."""

    def __init__(self) -> None:
        self._requests: list[tuple[str, ExportTraceServiceRequest]] = []
        self._lock = threading.Lock()
        self.url = ""

    def take(self, path: str, body: bytes) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        with self._lock:
            self._requests.append((path, request))

    @property
    def paths(self) -> set[str]:
        with self._lock:
            return {path for path, _ in self._requests}

    def spans(self) -> list[tuple[Any, dict[str, Any]]]:
        """Give every span, with what its process says of itself."""
        with self._lock:
            return [
                (span, {a.key: _value(a.value) for a in resource_spans.resource.attributes})
                for _, request in self._requests
                for resource_spans in request.resource_spans
                for scope_spans in resource_spans.scope_spans
                for span in scope_spans.spans
            ]

    def named(self, name: str) -> list[tuple[Any, dict[str, Any]]]:
        return [found for found in self.spans() if found[0].name == name]

    def wait_for(self, name: str, n: int = 1) -> list[tuple[Any, dict[str, Any]]]:
        """Wait until there are so many spans of a name."""
        until(lambda: len(self.named(name)) >= n, 20)
        return self.named(name)


@contextmanager
def collecting() -> Iterator[Collector]:
    """Collect until the end of the block."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))
