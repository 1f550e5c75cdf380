"""A log that raises: every request is answered all the same, and the model stays free."""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.http.answers import error_of

from mlserve import Batching, ModelHandler, ModelServer
from mlserve.observability.loggers import get_logger


class Raising(logging.Handler):
    """A handler whose disk is full."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("no space left on device")


@pytest.fixture
def broken_log() -> Iterator[None]:
    handler, log = Raising(), logging.getLogger("mlserve")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield
    log.removeHandler(handler)
    log.setLevel(level)


def fail_if(hook: str, value: str) -> str:
    if value == hook:
        raise KeyError("secret")
    return value


class Breakable(ModelHandler[str, str]):
    """Fails in the hook that the request names."""

    batching = Batching(max_size=4)

    def preprocess(self, request: str) -> str:
        return fail_if("preprocess", request)

    def infer(self, inputs: list[str]) -> list[str]:
        return [fail_if("infer", value) for value in inputs]

    def postprocess(self, output: str) -> str:
        return fail_if("postprocess", output)

    def stream(self, item: str) -> Iterator[str]:
        yield fail_if("stream", item)


class Async(ModelHandler[str, str]):
    """The same, on the event loop."""

    batching = Batching(max_size=4)

    async def preprocess(self, request: str) -> str:
        return fail_if("preprocess", request)

    async def infer(self, inputs: list[str]) -> list[str]:
        return [fail_if("infer", value) for value in inputs]

    async def postprocess(self, output: str) -> str:
        return fail_if("postprocess", output)

    async def stream(self, item: str) -> AsyncIterator[str]:
        yield fail_if("stream", item)


@pytest.mark.usefixtures("broken_log")
@pytest.mark.parametrize("handler", [Breakable, Async])
@pytest.mark.parametrize("hook", ["preprocess", "infer", "postprocess", "stream"])
def test_a_log_that_raises_costs_no_answer(
    handler: type[ModelHandler[Any, Any]], hook: str
) -> None:
    route = "stream" if hook == "stream" else "predict"
    with TestClient(ModelServer().add("m", handler).build()) as client:
        failed = client.post(f"/v1/models/m/{route}", json=hook)
        fine = [client.post("/v1/models/m/predict", json="fine").json() for _ in range(3)]

    error_of(failed, 500, "model_error")
    assert fine == ["fine"] * 3


def test_a_line_says_where_it_was_written(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("mlserve.test").error("broken %s", "thing", extra={"model": "m"})

    (record,) = caplog.records
    assert (record.getMessage(), record.funcName) == (
        "broken thing",
        "test_a_line_says_where_it_was_written",
    )
    assert vars(record)["model"] == "m"
