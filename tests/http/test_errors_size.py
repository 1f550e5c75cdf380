"""Error bodies are small and can be written whatever stands in the error."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import Query
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, RootModel
from starlette.exceptions import HTTPException
from tests.http.answers import MAX_BYTES, error_of, events_of

from mlserve import InvalidInputError, ModelHandler, ModelServer
from mlserve.errors import MLServeError, ModelNotFoundError, QueueFullError, SchemaViolationError
from mlserve.http.errors import error_body, refusal_body
from mlserve.model import safe_details

PREDICT = "/v1/models/m/predict"
EMOJI = "\U0001f600"


class Refusing(ModelHandler[str, str]):
    param: Any = None

    def infer(self, inputs: list[str]) -> list[str]:
        raise InvalidInputError("No.", param=self.param)

    def stream(self, item: str) -> Iterator[str]:
        yield item
        raise InvalidInputError("No.", param=self.param)


def refusing(param: Any) -> type[Refusing]:
    return type("Refusing", (Refusing,), {"param": param})


@pytest.mark.parametrize(
    ("param", "shown"),
    [(np.int64(3), "3"), (7, "7"), ("x" * 5000, "x" * 128), (EMOJI * 5000, EMOJI * 128)],
    ids=["numpy", "int", "long", "emoji"],
)
def test_a_param_of_any_type_and_length_can_be_answered(param: Any, shown: str) -> None:
    with TestClient(ModelServer().add("m", refusing(param)).build()) as client:
        answer = client.post(PREDICT, json="a")
        events = events_of(client.post("/v1/models/m/stream", json="a"))

    assert error_of(answer, 422, "invalid_input")["param"] == shown
    assert json.loads(events[-2])["error"]["param"] == shown
    assert events[-1] == "[DONE]"


class Unprintable:
    def __str__(self) -> str:
        raise OSError("/srv/secret")


class OddError(MLServeError):
    """An error whose param nothing can write."""

    param: Any = Unprintable()


class MuteError(MLServeError):
    """An error that cannot say itself."""

    def __str__(self) -> str:
        raise OSError("/srv/secret")


@given(st.text(), st.text(), st.none() | st.floats(0, 1e9) | st.integers(0, 10**9))
def test_an_error_is_written_as_the_library_writes_json(
    message: str, param: str, retry_after_s: float | None
) -> None:
    error = InvalidInputError(message, param=param)
    error.retry_after_s = retry_after_s

    body = error_body(error, "an-id")

    found = json.loads(body)
    assert body == json.dumps(found).encode()
    assert found["error"] == {
        "code": "invalid_input",
        "type": "RequestError",
        "message": message[:1000],
        "request_id": "an-id",
        "retry_after_s": retry_after_s,
        "param": param[:128],
    }


@given(st.text(max_size=2000), st.integers(0, 9999), st.none() | st.floats(0, 1e9))
def test_the_body_of_a_refusal_is_that_of_any_error(
    model: str, limit: int, retry_after_s: float | None
) -> None:
    error = QueueFullError(model, limit)
    error.retry_after_s = retry_after_s

    assert refusal_body(error, "an-id") == error_body(error, "an-id")


@pytest.mark.parametrize("error", [OddError("x"), MuteError()], ids=["its param", "its text"])
def test_an_error_that_cannot_be_written_has_a_body_all_the_same(error: Exception) -> None:
    body = error_body(error, "some-id")

    assert json.loads(body)["error"]["code"] == "internal_error"
    assert b"secret" not in body


ERRORS = {
    "a long message": InvalidInputError(EMOJI * 5000, param=EMOJI * 5000),
    "a long name": ModelNotFoundError(EMOJI * 5000, EMOJI * 5000),
    "long places": SchemaViolationError(
        [{"type": "t", "loc": ["body", *[EMOJI * 64] * 16], "msg": EMOJI * 200}] * 10, 10
    ),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_no_error_body_is_longer_than_the_limit(error: Exception) -> None:
    assert len(error_body(error, "r" * 128)) <= MAX_BYTES


def test_the_name_of_an_unknown_model_is_cut() -> None:
    error = ModelNotFoundError("a" * 5000)

    assert "a" * 64 in str(error)
    assert "a" * 65 not in str(error)


def test_emoji_as_names_of_fields_leave_the_answer_small() -> None:
    class Strict(BaseModel, extra="forbid"):
        name: str = ""

    class Named(ModelHandler[Strict, str]):
        def infer(self, inputs: list[Strict]) -> list[str]:
            return [item.name for item in inputs]

    with TestClient(ModelServer().add("m", Named).build()) as client:
        answer = client.post(PREDICT, json={EMOJI * 100 + str(n): 1 for n in range(30)})

    error_of(answer, 422, "validation_error")
    assert answer.json()["detail"]


class Tree(RootModel[dict[str, "Tree"]]):
    """An object of objects, as deep as one likes."""


def test_a_place_deep_within_the_body_leaves_the_answer_small() -> None:
    class Deep(ModelHandler[Tree, str]):
        def infer(self, inputs: list[Tree]) -> list[str]:
            return ["" for _ in inputs]

    value: Any = 1
    for n in range(60):
        value = {"k" * 60 + str(n): value}
    with TestClient(ModelServer().add("m", Deep).build()) as client:
        answer = client.post(PREDICT, json=value)

    error = error_of(answer, 422, "validation_error")
    assert len(error["param"]) <= 128
    assert len(answer.json()["detail"][0]["loc"]) <= 17


def test_fastapis_own_errors_show_as_little_as_ours() -> None:
    entry = {
        "type": "union_tag_invalid",
        "loc": ("query", 3, "k" * 100),
        "msg": "Input tag 'canary' found",
        "input": "canary",
        "ctx": {"tag": "canary"},
    }

    body = error_body(RequestValidationError([entry] * 30), "id")
    details = safe_details(RequestValidationError([entry] * 30).errors())

    assert b"canary" not in body
    assert len(details) == 10
    assert details[0]["loc"] == ["query", 3, "k" * 64]


def test_a_wrong_parameter_of_a_users_route_has_our_details() -> None:
    app = ModelServer().build()

    @app.get("/own")
    async def own(n: int = Query()) -> int:
        return n

    with TestClient(app) as client:
        answer = client.get("/own", params={"n": "canary"})

    assert error_of(answer, 422, "validation_error")["param"] == "n"
    assert "canary" not in answer.text


@pytest.mark.parametrize("retry", ["²", "9" * 400, "soon"])
def test_a_retry_that_is_no_plain_number_is_passed_on_only(retry: str) -> None:
    error = HTTPException(503, "Later.", headers={"Retry-After": retry})

    assert json.loads(error_body(error, "id"))["error"]["retry_after_s"] is None
