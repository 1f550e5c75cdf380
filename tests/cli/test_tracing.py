"""`mlserve run` exports traces where the standard variables of OpenTelemetry ask for it."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from tests.cli.projects import Served, serving
from tests.observability.collector import Collector, collecting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.usefixtures("unmeasured")]

PROJECT = """
from mlserve import ModelHandler, ModelServer, Replicas


class Shout(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return [text.upper() for text in inputs]

    def postprocess(self, output: str) -> str:
        return output


within = ModelServer().add("m", Shout)
apart = ModelServer().add("m", Shout, replicas=Replicas(placement="process"))
"""
SERVER = "POST /v1/models/m/predict"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    (folder / "traced.py").write_text(PROJECT, encoding="utf-8")
    return folder


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def ask(served: Served, n: int = 1) -> None:
    with served.client() as client:
        for _ in range(n):
            assert client.post("/v1/models/m/predict", json="a").json() == "A"


def end(served: Served) -> int:
    served.process.send_signal(SIGTERM)
    return served.exit_code()


def test_what_is_left_is_exported_when_the_server_ends(folder: Path, collector: Collector) -> None:
    with serving(folder, "traced:within", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as served:
        ask(served, 3)
        assert end(served) == 0

    assert collector.paths == {"/v1/traces"}
    assert len(collector.named(SERVER)) == 3
    [about] = {tuple(about.items()) for _, about in collector.spans()}
    assert dict(about)["service.name"] == "mlserve"
    assert {span.name for span, _ in collector.spans()} == {
        SERVER, "batch m", "queue", "infer", "postprocess",
    }  # fmt: skip


def test_the_batches_of_replicas_in_processes_are_linked_to_their_requests(
    folder: Path, collector: Collector
) -> None:
    environment: dict[str, Any] = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
        "OTEL_SERVICE_NAME": "reviews",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with serving(folder, "traced:apart", "--workers", "2", **environment) as served:
        ask(served, 2)
        requests = collector.wait_for(SERVER, 2)
        batches = collector.wait_for("batch m", 2)
        stages = collector.wait_for("postprocess", 2)
        assert end(served) == 0

    linked = {link.span_id for batch, _ in batches for link in batch.links}
    assert linked == {request.span_id for request, _ in requests}
    assert {about["service.name"] for _, about in collector.spans()} == {"reviews"}
    http = {about["process.pid"] for _, about in requests}
    assert {about["process.pid"] for _, about in batches}.isdisjoint(http)
    assert {about["process.pid"] for _, about in stages} <= http
    by_id = {request.span_id: request for request, _ in requests}
    for stage, _ in stages:  # one clock for all processes of the machine
        request = by_id[stage.parent_span_id]
        assert request.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.end_time_unix_nano <= request.end_time_unix_nano


def test_what_fastapi_exports_itself_is_exported_once(folder: Path, collector: Collector) -> None:
    environment: dict[str, Any] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    with serving(folder, "traced:within", **environment) as served:
        ask(served)
        assert end(served) == 0

    assert len(collector.named(SERVER)) == 1
    assert len(collector.named("batch m")) == 1


def test_a_collector_that_is_not_there_holds_nothing_up(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with serving(folder, "traced:within", OTEL_EXPORTER_OTLP_ENDPOINT=url) as served:
            ask(served)
            started = time.monotonic()
            assert end(served) == 0

    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_cannot_be_exported_is_said_and_the_server_serves(
    folder: Path, environment: dict[str, Any]
) -> None:
    with serving(folder, "traced:within", **environment) as served:
        ask(served)
        line = served.wait_for("Traces are not exported.")
        assert end(served) == 0

    assert "http/protobuf" in line


def test_without_the_variables_nothing_is_exported(folder: Path, collector: Collector) -> None:
    off: dict[str, Any] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_SDK_DISABLED": "true",
    }
    with serving(folder, "traced:within", **off) as served:
        ask(served)
        assert end(served) == 0

    assert collector.spans() == []
