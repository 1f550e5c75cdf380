"""An answered request is freed at once, also where no hook stands beside `infer`."""

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, field_validator
from tests.http.waiting import until

from mlserve import InvalidInputError, ModelHandler, ModelServer
from mlserve.job import Job
from mlserve.testing import running


class Number(BaseModel):
    value: int

    @field_validator("value")
    @classmethod
    def check(cls, value: int) -> int:
        if value < 0:
            raise SystemExit(1)
        return value


class Moody(ModelHandler[str, Number]):
    """Does what the text says."""

    def infer(self, inputs: list[str]) -> list[Any]:
        if "refused" in inputs:
            raise InvalidInputError("Not this one.")
        if "failing" in inputs:
            raise RuntimeError
        outputs = {"not fitting": {"value": "SECRET"}, "ending": {"value": -1}}
        outputs["failing alone"] = OSError()
        return [outputs.get(text, {"value": 1}) for text in inputs]


class AsyncMoody(ModelHandler[str, Number]):
    """Does the same on the event loop."""

    async def infer(self, inputs: list[str]) -> list[Any]:
        return Moody().infer(inputs)


class SuspendedMoody(AsyncMoody):
    """Does the same a turn of the event loop later."""

    async def infer(self, inputs: list[str]) -> list[Any]:
        await asyncio.sleep(0)
        return await super().infer(inputs)


@pytest.fixture
def no_collector() -> Iterator[None]:
    logging.disable()  # pytest keeps what is logged, tracebacks included
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def jobs_of(request_id: str) -> list[Job]:
    jobs = [thing for thing in gc.get_objects() if type(thing) is Job]
    return [job for job in jobs if job.call.request_id == request_id]


@pytest.mark.slow
@pytest.mark.parametrize("handler", [Moody, AsyncMoody, SuspendedMoody])
@pytest.mark.parametrize(
    "text", ["good", "refused", "failing", "failing alone", "not fitting", "ending"]
)
def test_nothing_of_a_request_waits_for_the_collector(
    handler: type[ModelHandler[str, Number]], text: str, no_collector: None
) -> None:
    headers = {"X-Request-ID": f"{handler.__name__}-{text.replace(' ', '-')}"}
    with running(ModelServer().add("m", handler)) as client:
        for _ in range(3):
            answer = client.post("/v1/models/m/predict", json=text, headers=headers)
            assert answer.is_success == (text == "good")
            assert answer.headers["X-Request-ID"] == headers["X-Request-ID"]
        until(lambda: not jobs_of(headers["X-Request-ID"]), 2)
