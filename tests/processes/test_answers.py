"""What a request carries to the process of its replica, and what comes back."""

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.http.answers import events_of
from tests.processes.handlers import (
    Anything,
    Careful,
    Limited,
    OddError,
    Telling,
    Unwelcome,
    Voluminous,
)
from tests.processes.serving import Served, begin, served, until

from mlserve import (
    Batching,
    DeadlineExceededError,
    InvalidInputError,
    ModelError,
    ModelFailedError,
    ModelServer,
    Replicas,
)
from mlserve.handler import Call
from mlserve.job import Job
from mlserve.testing import running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def telling() -> Iterator[Served]:
    with served(Telling) as model:
        yield model


@pytest.fixture(scope="module")
def anything() -> Iterator[Served]:
    with served(Anything) as model:
        yield model


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("careful") / "notes"


@pytest.fixture(scope="module")
def shared(notes: Path) -> Iterator[Served]:
    with served(partial(Careful, notes)) as model:
        yield model


@pytest.fixture
def careful(shared: Served, notes: Path) -> Served:
    notes.write_text("")
    return shared


def events(notes: Path) -> list[str]:
    return notes.read_text().splitlines()


def noted(notes: Path, event: str) -> Callable[[], bool]:
    return lambda: event in events(notes)


def test_a_hook_knows_of_its_request_what_it_would_know_in_this_process(telling: Served) -> None:
    call = Call("id-7", timeout_s=5.0, headers={"x-tenant": "a"})
    job = Job("hello", call, timeout_s=5.0)

    answer = telling.run(telling.model.engine.predict(job))

    assert answer["request_id"] == "id-7"
    assert answer["headers"] == {"x-tenant": "a"}
    assert 4.0 < answer["remaining_s"] < 5.0
    assert call.annotations == {"seen": "id-7", "pid": telling.pid()}


def test_the_times_of_the_stages_come_back(careful: Served) -> None:
    job = Job("sleep 0.05", Call("id", timeout_s=5.0), timeout_s=5.0)

    careful.run(careful.model.engine.predict(job))

    assert 0.05 <= job.times.infer_s < 1.0
    assert 0.0 <= job.times.queue_s < 1.0
    assert job.times.batch_size == 1


def test_a_running_hook_is_told_that_nobody_waits_any_more(careful: Served, notes: Path) -> None:
    async def scenario() -> None:
        task = begin(careful.model.predict("until cancelled"))
        await until(noted(notes, "until cancelled"))
        task.cancel()
        await until(noted(notes, "cancelled"))

    careful.run(scenario())


def test_a_running_hook_is_told_that_its_time_is_over(careful: Served, notes: Path) -> None:
    with pytest.raises(DeadlineExceededError, match="infer"):
        careful.ask("until cancelled", timeout_s=0.1)

    careful.wait(noted(notes, "cancelled"))


def test_a_stream_is_told_that_nobody_reads_any_more_and_closed(
    careful: Served, notes: Path
) -> None:
    async def scenario() -> None:
        stream = careful.model.stream("until cancelled")
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
        await until(noted(notes, "cancelled"))
        await until(noted(notes, "closed"))

    careful.run(scenario())


def test_what_is_cancelled_while_it_waits_is_never_run(
    careful: Served, notes: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held"

    async def scenario() -> None:
        first = begin(careful.model.predict(f"hold {held}"))
        await until(held.exists)
        second, third = (begin(careful.model.predict(text)) for text in ("second", "third"))
        await until(lambda: careful.fleet.board.replicas[0].held == 3)
        second.cancel()
        await until(lambda: careful.fleet.board.replicas[0].held == 2)
        held.with_suffix(".go").touch()
        await first
        await third

    careful.run(scenario())

    assert events(notes) == [f"hold {held}", "third"]


def test_what_runs_out_of_time_while_it_waits_is_never_run(
    careful: Served, notes: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held"

    async def scenario() -> None:
        first = begin(careful.model.predict(f"hold {held}"))
        await until(held.exists)
        with pytest.raises(DeadlineExceededError, match="queue"):
            await careful.model.predict("late", timeout_s=0.05)
        held.with_suffix(".go").touch()
        await first
        await careful.model.predict("after")

    careful.run(scenario())

    assert events(notes) == [f"hold {held}", "after"]


def test_the_most_urgent_request_goes_first(careful: Served, notes: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"

    async def scenario() -> None:
        first = begin(careful.model.predict(f"hold {held}"))
        await until(held.exists)
        later = [begin(careful.model.predict(str(n), priority=n)) for n in (9, 5, 0)]
        await until(lambda: careful.fleet.board.replicas[0].held == 4)
        held.with_suffix(".go").touch()
        await asyncio.gather(first, *later)

    careful.run(scenario())

    assert events(notes)[1:] == ["0", "5", "9"]


def test_a_reader_that_does_not_read_holds_the_generator_back(careful: Served, notes: Path) -> None:
    async def scenario() -> tuple[int, list[str]]:
        stream = careful.model.stream("all")
        texts = [(await anext(stream))["text"]]
        n_before = -1
        while n_before != (n_given := len(events(notes))):
            n_before = n_given
            await asyncio.sleep(0.1)  # time is what this is about
        texts += [chunk["text"] async for chunk in stream]
        return n_given, texts

    n_given, texts = careful.run(scenario())

    assert 16 <= n_given <= 40
    assert texts == [str(number) for number in range(100)]


def test_large_chunks_are_all_read_however_many_there_are() -> None:
    server = ModelServer().add("large", Voluminous, replicas=Replicas(placement="process"))

    with running(server) as client:
        *chunks, end = events_of(client.post("/v1/models/large/stream", json=60))

    assert [chunk.split()[0] for chunk in chunks] == [f'"{number}' for number in range(60)]
    assert end == "[DONE]"


def test_memory_that_runs_out_makes_batches_smaller(tmp_path: Path) -> None:
    with served(partial(Limited, 2)) as model:
        answers = model.ask_all([0, 2, 4, 6, 8, 10, 12, 14])
        later = model.ask_all([0, 2, 4, 6])
        model.wait(lambda: model.model.statistics().out_of_memory > 0)
        statistics = model.model.statistics()

    assert [answer["value"] for answer in answers] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert {answer["n"] for answer in [*answers, *later]} <= {1, 2}
    assert statistics.splits > 0


def test_batches_are_made_by_key_and_cost_as_in_this_process() -> None:
    with served(Limited) as model:
        by_key = model.ask_all(list(range(8)))
    costly = Batching(max_size=8, max_cost=10)
    with served(partial(Limited, has_costs=True), batching=costly) as model:
        by_cost = model.ask_all([4] * 8)

    assert all(answer["sum"] % 2 == answer["odd"] * answer["n"] % 2 for answer in by_key)
    assert max(answer["n"] for answer in by_key) > 1
    assert max(answer["sum"] for answer in by_cost) == 8


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_arrive_and_large_answers_come_back(anything: Served, order: Any) -> None:
    array = np.asarray(np.arange(50_000_000 // 8).reshape(-1, 50), order=order)

    doubled = np.frombuffer(anything.ask(array), dtype=array.dtype)

    np.testing.assert_array_equal(doubled.reshape(array.shape), 2 * array)


def test_an_answer_that_cannot_be_sent_fails_alone(anything: Served) -> None:
    before, unsendable, after = anything.ask_all(["a", "unsendable", "b"])

    assert (before, after) == ("a", "b")
    assert type(unsendable) is ModelError


def test_a_chunk_that_cannot_be_sent_ends_its_stream(anything: Served) -> None:
    chunks, error = anything.read("a")

    assert chunks == ["a"]
    assert type(error) is ModelError


def test_a_request_that_cannot_be_sent_fails_alone(anything: Served) -> None:
    unsendable, after = anything.ask_all([lambda: None, "b"])

    assert type(unsendable) is ModelError
    assert after == "b"


def test_a_request_that_cannot_be_received_fails_alone(anything: Served) -> None:
    unwelcome, after = anything.ask_all([Unwelcome(), "b"])

    assert type(unwelcome) is ModelError
    assert after == "b"


@pytest.mark.parametrize("which", ["with a lock", "with a strict one"])
def test_an_error_that_cannot_be_sent_is_one_all_the_same(anything: Served, which: str) -> None:
    error, after = anything.ask_all([which, "b"], timeout_s=3.0)

    assert type(error) is ModelError
    assert after == "b"


def test_notes_that_cannot_be_sent_cost_no_answer(telling: Served) -> None:
    call = Call("with a lock", timeout_s=5.0)

    answer = telling.run(telling.model.engine.predict(Job("a", call, timeout_s=5.0)))

    assert answer["text"] == "a"
    assert call.annotations == {}


def test_errors_for_clients_come_back_as_what_they_are(anything: Served) -> None:
    refused, odd = anything.ask_all(["refuse", "oddly"])

    assert type(refused) is InvalidInputError
    assert str(refused) == "Say something else."
    assert type(odd) is OddError
    assert (str(odd), odd.second) == ("a and b", "b")


def test_a_hook_may_say_that_another_model_is_down(anything: Served) -> None:
    down, after = anything.ask_all(["another is down", "b"], timeout_s=3.0)

    assert type(down) is ModelFailedError
    assert "another" in str(down)
    assert after == "b"


def test_many_requests_at_once_are_each_given_their_own_answer(anything: Served) -> None:
    begun = time.monotonic()

    answers = anything.ask_all(list(range(1000)))

    assert answers == [2 * number for number in range(1000)]
    assert time.monotonic() - begun < 5.0
    assert anything.model.statistics().in_flight == 0
