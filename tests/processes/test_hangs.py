"""Processes that hang or break, and are replaced."""

import asyncio
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.processes.handlers import Asynchronous, Obedient, WarmedUp
from tests.processes.serving import Served, begin, served, until
from tests.processes.test_deaths import in_one_batch

from mlserve import DeadlineExceededError, Limits

pytestmark = pytest.mark.slow

HARD_S = 0.3


@pytest.fixture(scope="module")
def obedient() -> Iterator[Served]:
    with served(Obedient, limits=Limits(hard_timeout_s=HARD_S)) as model:
        yield model


@pytest.fixture
def model(obedient: Served) -> Served:
    return obedient.ready()


@pytest.mark.parametrize("way", ["hang", "hang with the GIL"])
def test_a_hook_that_does_not_return_is_ended_and_only_its_request_fails(
    model: Served, tmp_path: Path, way: str
) -> None:
    begun = time.monotonic()

    answers = model.ask_all(["a", way, "b", "c"])

    took_s = time.monotonic() - begun
    guilty = answers.pop(1)
    assert isinstance(guilty, DeadlineExceededError)
    assert "infer" in str(guilty)
    assert [answer["text"] for answer in answers] == ["a", "b", "c"]
    assert took_s < 2 * HARD_S + 4.0


@pytest.mark.parametrize("way", ["hang", "hang with the GIL"])
def test_a_stream_whose_next_chunk_does_not_come_is_ended(model: Served, way: str) -> None:
    chunks, error = model.read(f"{way}; b")

    assert chunks == []
    assert isinstance(error, DeadlineExceededError)
    assert "stream" in str(error)


def test_a_stream_whose_reader_is_slow_does_not_hang(model: Served) -> None:
    async def scenario() -> tuple[list[str], set[int]]:
        texts: list[str] = []
        pids: set[int] = set()
        async for chunk in model.model.stream("; ".join(f"c{n}" for n in range(40))):
            if not texts:
                await asyncio.sleep(3 * HARD_S)  # time is what this is about
            texts.append(chunk["text"])
            pids.add(chunk["pid"])
        return texts, pids

    texts, pids = model.run(scenario())

    assert texts == [f"c{n}" for n in range(40)]
    assert pids == {model.pid()}


def test_a_stream_may_take_longer_than_one_call_of_a_hook_may(model: Served) -> None:
    pid = model.pid()
    steps = [f"sleep {HARD_S / 2}"] * 5

    chunks, error = model.read("; ".join(steps))

    assert error is None
    assert [chunk["pid"] for chunk in chunks] == [pid] * 5


def test_a_batch_that_is_split_has_time_for_each_of_its_parts(
    model: Served, tmp_path: Path
) -> None:
    pid = model.pid()
    slow = f"sleep {HARD_S / 2}"

    answers = model.run(in_one_batch(model, ["a", slow, "raise", slow], tmp_path / "held"))

    assert [type(answer).__name__ for answer in answers] == ["dict", "dict", "ModelError", "dict"]
    assert model.pid() == pid


def test_without_a_limit_a_process_hangs_until_a_second_after_the_last_deadline() -> None:
    with served(Obedient) as model:
        pid = model.pid()
        begun = time.monotonic()

        answers = model.ask_all(["hang", "a"], timeout_s=0.3)
        answered_s = time.monotonic() - begun
        model.wait(lambda: model.pid() not in (0, pid))
        replaced_s = time.monotonic() - begun
        after = model.ask("a")

    assert [type(answer) for answer in answers] == [DeadlineExceededError] * 2
    assert answered_s < 0.8
    assert 1.2 < replaced_s < 2.5
    assert after["text"] == "a"


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_process_that_is_stopped_is_replaced_within_a_second_or_so(
    model: Served, tmp_path: Path, is_busy: bool
) -> None:
    held = tmp_path / "held"

    async def scenario() -> list[Any]:
        order = f"hold {held}" if is_busy else "a"
        running = begin(model.gather([order])) if is_busy else None
        if running is not None:
            await until(held.exists)
            held.with_suffix(".go").touch()
        model.kill(sig=signal.SIGSTOP)
        return await running if running is not None else await model.gather([order])

    pid = model.pid()
    begun = time.monotonic()

    (answer,) = model.run(scenario())

    assert time.monotonic() - begun < 3.0
    assert answer["pid"] != pid


def test_a_process_that_is_stopped_for_a_moment_is_left_alone(model: Served) -> None:
    async def scenario() -> int:
        pid = model.kill(sig=signal.SIGSTOP)
        await asyncio.sleep(0.1)  # time is what this is about
        model.kill(sig=signal.SIGCONT)
        await asyncio.sleep(0.6)
        return pid

    assert model.run(scenario()) == model.ask("a")["pid"]


@pytest.fixture(scope="module")
def asynchronous() -> Iterator[Served]:
    with served(Asynchronous, limits=Limits(hard_timeout_s=HARD_S)) as model:
        yield model


def test_an_async_hook_that_holds_the_event_loop_is_ended(asynchronous: Served) -> None:
    before, guilty, after = asynchronous.ready().ask_all(["a", "hang", "b"])

    assert isinstance(guilty, DeadlineExceededError)
    assert (before["text"], after["text"]) == ("a", "b")


@pytest.mark.parametrize("kind", ["obedient", "asynchronous"])
@pytest.mark.parametrize("hook", ["infer", "stream"])
def test_a_process_whose_device_is_broken_is_replaced_and_nobody_notices(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    hook: str,
) -> None:
    model: Served = request.getfixturevalue(kind).ready()
    pid = model.pid()
    order = f"once {tmp_path / 'mark'} break the device"

    if hook == "infer":
        answers = model.ask_all(["a", order, "b"])
    else:
        answers, error = model.read(f"{order}; b; c")
        assert error is None

    assert len(answers) == 3
    assert pid not in {answer["pid"] for answer in answers}
    (record,) = [r for r in caplog.records if r.getMessage() == "replica.device.broken"]
    assert "AcceleratorError" in (record.exc_text or "")


def test_a_device_that_breaks_while_the_model_is_warmed_up_costs_another_process(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "mark"

    with served(partial(WarmedUp, example=f"once {mark} break the device")) as model:
        answer = model.ask("a")

    assert mark.exists()
    assert answer["text"] == "a"
