"""A job hands its answer to its sink."""

import asyncio
from typing import Any

from mlserve.errors import ModelError
from mlserve.handler import Call
from mlserve.job import FutureSink, Job
from mlserve.testing import FakeClock


class Answers:
    """Keeps the answers."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def result(self, value: Any) -> None:
        self.given.append(value)

    def fail(self, error: BaseException) -> None:
        self.given.append(error)


def test_a_result_and_an_error_reach_the_sink() -> None:
    job = Job("text", Call(), timeout_s=1.0)
    job.sink = answers = Answers()
    error = ModelError()

    job.result(5)
    job.fail(error)

    assert answers.given == [5, error]


def test_without_a_sink_an_answer_is_dropped() -> None:
    job = Job("text", Call(), timeout_s=1.0)

    job.result(5)
    job.fail(ModelError())


def test_a_job_has_the_deadline_and_the_cancel_flag_of_its_call() -> None:
    job = Job("text", Call("r-1", timeout_s=2.0, clock=FakeClock(5.0)), timeout_s=2.0)

    assert job.deadline == 7.0
    assert not job.abandoned
    job.call.cancel()
    assert job.abandoned


def test_a_new_job_is_about_to_be_preprocessed() -> None:
    job = Job("text", Call("r-1"), timeout_s=2.0, priority=3)

    assert repr(job) == "<Job r-1 in preprocess, cost 1>"
    assert (job.priority, job.key, job.times.chunks) == (3, None, 0)


def test_only_the_first_answer_of_a_unary_job_counts() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        answered, failed, left = loop.create_future(), loop.create_future(), loop.create_future()
        left.cancel()
        FutureSink(answered).result(5)
        FutureSink(failed).fail(ModelError())
        for future in (answered, failed, left):
            FutureSink(future).fail(KeyError("late"))
            FutureSink(future).result("late")
        assert answered.result() == 5
        assert isinstance(failed.exception(), ModelError)
        assert left.cancelled()

    asyncio.run(scenario())
