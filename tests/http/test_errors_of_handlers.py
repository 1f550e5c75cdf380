"""Handlers that break: their own request fails, with our body and nothing of theirs in it."""

import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel, field_serializer
from tests.http.answers import error_of

from mlserve import (
    DeadlineExceededError,
    InvalidInputError,
    ModelHandler,
    ModelServer,
    QueueFullError,
)

SECRET = "/srv/secret/weights.safetensors"  # noqa: S105 - a path, which answers must not show
PREDICT = "/v1/models/m/predict"


class Text(BaseModel):
    text: str


class Breakable(ModelHandler[Text, Text]):
    """Runs `fault` in the hook that the request names."""

    fault: Callable[[], Any]

    def _maybe(self, hook: str, text: str) -> None:
        if text == hook:
            type(self).fault()

    def preprocess(self, request: Text) -> Text:
        self._maybe("preprocess", request.text)
        return request

    def cost(self, item: Text) -> int:
        self._maybe("cost", item.text)
        return 1

    def batch_key(self, item: Text) -> str:
        self._maybe("batch_key", item.text)
        return ""

    def infer(self, inputs: list[Text]) -> list[Text]:
        for item in inputs:
            self._maybe("infer", item.text)
        return inputs

    def postprocess(self, output: Text) -> Text:
        self._maybe("postprocess", output.text)
        return output

    def stream(self, item: Text) -> Iterator[Text]:
        self._maybe("stream", item.text)
        yield item


def ask(client: TestClient, text: str) -> Any:
    return client.post(
        f"/v1/models/m/{'stream' if text == 'stream' else 'predict'}", json={"text": text}
    )


def raising(error: BaseException) -> Callable[[], Any]:
    def fault() -> None:
        raise error

    return staticmethod(fault)


HOOKS = ["preprocess", "cost", "batch_key", "infer", "postprocess", "stream"]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError(SECRET),
        OSError(2, "No such file", SECRET),
        KeyError(SECRET),
        StopIteration(SECRET),
        SystemExit(SECRET),
        KeyboardInterrupt(SECRET),
        RecursionError(SECRET),
        AssertionError(SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_of_a_hook_is_a_model_error_without_its_text(
    hook: str, fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    handler = type("Faulty", (Breakable,), {"fault": raising(fault)})
    with TestClient(ModelServer().add("m", handler).build()) as client:
        broken = ask(client, hook)
        good = ask(client, "fine")

    error_of(broken, 500, "model_error")
    assert broken.json()["error"]["type"] == "ModelError"
    assert SECRET not in broken.text
    assert "Traceback" not in broken.text
    assert good.json() == {"text": "fine"}
    assert any(broken.headers["x-request-id"] in str(vars(r)) for r in caplog.records)


@pytest.mark.parametrize("hook", HOOKS)
def test_lack_of_memory_for_one_request_alone_is_said_without_its_text(hook: str) -> None:
    handler = type("Faulty", (Breakable,), {"fault": raising(MemoryError(SECRET))})
    with TestClient(ModelServer().add("m", handler).build()) as client:
        broken = ask(client, hook)
        good = ask(client, "fine")

    error_of(broken, 507, "out_of_memory")
    assert SECRET not in broken.text
    assert good.json() == {"text": "fine"}


def test_sys_exit_in_infer_ends_one_request_and_not_the_server() -> None:
    handler = type("Leaver", (Breakable,), {"fault": staticmethod(lambda: sys.exit(0))})

    with TestClient(ModelServer().add("m", handler).build()) as client:
        broken = ask(client, "infer")
        good = ask(client, "fine")

    error_of(broken, 500, "model_error")
    assert good.status_code == 200


def test_a_value_error_in_preprocess_is_the_inputs_fault_without_its_text() -> None:
    handler = type("Picky", (Breakable,), {"fault": raising(ValueError(SECRET))})

    with TestClient(ModelServer().add("m", handler).build()) as client:
        answer = ask(client, "preprocess")

    error_of(answer, 422, "invalid_input")
    assert SECRET not in answer.text


@pytest.mark.parametrize("hook", ["cost", "batch_key", "infer", "postprocess", "stream"])
def test_a_value_error_in_another_hook_is_the_models_fault(hook: str) -> None:
    handler = type("Faulty", (Breakable,), {"fault": raising(ValueError(SECRET))})

    with TestClient(ModelServer().add("m", handler).build()) as client:
        answer = ask(client, hook)

    error_of(answer, 500, "model_error")
    assert SECRET not in answer.text


@pytest.mark.parametrize("hook", HOOKS)
def test_the_text_of_an_invalid_input_error_reaches_the_client_from_every_hook(hook: str) -> None:
    fault = InvalidInputError("`text` is in no language that I know.", param="text")
    handler = type("Teacher", (Breakable,), {"fault": raising(fault)})

    with TestClient(ModelServer().add("m", handler).build()) as client:
        answer = ask(client, hook)

    error = error_of(answer, 422, "invalid_input")
    assert (error["message"], error["param"]) == ("`text` is in no language that I know.", "text")


def test_a_huge_text_of_a_handler_is_cut_and_odd_characters_break_nothing() -> None:
    text = "\ud800\x00</script>" + "ä" * 100_000 + "."
    handler = type("Talker", (Breakable,), {"fault": raising(InvalidInputError(text))})

    with TestClient(ModelServer().add("m", handler).build()) as client:
        answer = ask(client, "preprocess")

    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("\ud800\x00</script>ää")
    assert len(answer.content) <= 4096 * 2


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (QueueFullError("remote", 3), 503, "queue_full"),
        (DeadlineExceededError("infer", 1.5), 504, "deadline_exceeded"),
    ],
)
def test_errors_of_mlserve_keep_their_status_when_a_handler_raises_them(
    fault: Exception, status: int, code: str
) -> None:
    handler = type("Caller", (Breakable,), {"fault": raising(fault)})

    with TestClient(ModelServer().add("m", handler).build()) as client:
        answer = ask(client, "infer")

    error_of(answer, status, code)


def test_an_exception_in_the_place_of_an_output_fails_only_its_request() -> None:
    class Placing(ModelHandler[int, int]):
        def infer(self, inputs: list[int]) -> list[Any]:
            return [RuntimeError(SECRET) if value < 0 else value for value in inputs]

    with TestClient(ModelServer().add("m", Placing).build()) as client:
        broken = client.post(PREDICT, json=-1)
        good = client.post(PREDICT, json=1)

    error_of(broken, 500, "model_error")
    assert SECRET not in broken.text
    assert good.json() == 1


OUTPUTS: dict[str, Callable[[list[Any]], Any]] = {
    "one too few": lambda inputs: inputs[1:],
    "one too many": lambda inputs: [*inputs, 1.0],
    "a dict": lambda inputs: dict(enumerate(inputs)),
    "text": lambda inputs: "a",
    "bytes": lambda inputs: b"a",
    "nothing": lambda inputs: None,
    "a number": lambda inputs: 1.0,
    "a generator": lambda inputs: (value for value in inputs),
    "a set": lambda inputs: {1.0},
    "an array of no dimension": lambda inputs: np.float32(1),
    "a batch that is too large": lambda inputs: np.zeros((len(inputs) + 1,)),
}


@pytest.mark.parametrize("make", OUTPUTS.values(), ids=OUTPUTS)
def test_what_is_no_list_of_one_output_per_input_is_named(make: Callable[[Any], Any]) -> None:
    class Odd(ModelHandler[float, float]):
        def infer(self, inputs: list[float]) -> Any:
            return make(inputs)

    with TestClient(ModelServer().add("m", Odd).build()) as client:
        answer = client.post(PREDICT, json=4711)

    error = error_of(answer, 500, "model_error")
    assert "per input" in error["message"]


class Loop:
    """An object that no JSON can show."""

    def __repr__(self) -> str:
        return SECRET


BAD_VALUES: dict[str, tuple[Any, Any]] = {
    "NaN": (float, float("nan")),
    "infinity": (float, float("-inf")),
    "NaN in a list": (list[float], [1.0, float("nan")]),
    "NaN in an array": (list[float], np.array([1.0, np.nan])),
    "NaN somewhere": (Any, {"a": [{"b": float("inf")}]}),
    "an object": (Any, Loop()),
    "a list of objects": (Any, [Loop()]),
    "a wrong type": (float, "not a number: " + SECRET),
    "a missing field": (Text, {"txt": SECRET}),
    "nothing": (Text, None),
    "bytes that are no text": (str, b"\xff\xfe"),
    "a lone surrogate": (str, "\ud800"),
}


@pytest.mark.parametrize(("declared", "value"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_an_output_that_is_not_what_was_declared_is_a_model_error(
    declared: Any, value: Any
) -> None:
    class Odd(ModelHandler[int, declared]):
        def infer(self, inputs: list[int]) -> list[Any]:
            return [value if number else 1.5 for number in inputs]

        def postprocess(self, output: Any) -> Any:
            return output

    with TestClient(ModelServer().add("m", Odd).build()) as client:
        answer = client.post(PREDICT, json=1)

    error_of(answer, 500, "model_error")
    assert SECRET not in answer.text


def test_an_output_that_refers_to_itself_is_a_model_error() -> None:
    class Circular(ModelHandler[int, Any]):
        def infer(self, inputs: list[int]) -> list[Any]:
            circle: list[Any] = []
            circle.append(circle)
            return [circle for _ in inputs]

    with TestClient(ModelServer().add("m", Circular).build()) as client:
        error_of(client.post(PREDICT, json=1), 500, "model_error")


def test_a_response_model_whose_serialiser_breaks_is_a_model_error() -> None:
    class Fragile(BaseModel):
        value: int

        @field_serializer("value")
        def _write(self, value: int) -> int:
            raise RuntimeError(SECRET)

    class Odd(ModelHandler[int, Fragile]):
        def infer(self, inputs: list[int]) -> list[Fragile]:
            return [Fragile(value=value) for value in inputs]

    with TestClient(ModelServer().add("m", Odd).build()) as client:
        answer = client.post(PREDICT, json=1)

    error_of(answer, 500, "model_error")
    assert SECRET not in answer.text


def test_an_exception_of_an_async_hook_is_a_model_error(caplog: pytest.LogCaptureFixture) -> None:
    class Remote(ModelHandler[int, int]):
        async def infer(self, inputs: list[int]) -> list[int]:
            raise ConnectionError(SECRET)

    with caplog.at_level(logging.ERROR), TestClient(ModelServer().add("m", Remote).build()) as c:
        answer = c.post(PREDICT, json=1)

    error_of(answer, 500, "model_error")
    assert SECRET not in answer.text
    assert SECRET in caplog.text
