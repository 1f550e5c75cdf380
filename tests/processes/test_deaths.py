"""What becomes of requests whose process ends under them: each is answered, and answered once."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.processes.handlers import Obedient, Once, Preprocessing
from tests.processes.serving import Served, begin, served, until

from mlserve import ModelError, ReplicaDiedError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def obedient() -> Iterator[Served]:
    with served(Obedient) as model:
        yield model


@pytest.fixture
def model(obedient: Served) -> Served:
    return obedient.ready()


@pytest.fixture(scope="module")
def unrepeatable() -> Iterator[Served]:
    with served(Once) as model:
        yield model


@pytest.fixture
def once(unrepeatable: Served) -> Served:
    return unrepeatable.ready()


async def in_one_batch(model: Served, orders: list[str], held: Path) -> list[Any]:
    """Have requests wait behind another one, so that they are run together."""
    first = begin(model.model.predict(f"hold {held}"))
    await until(held.exists)
    others = begin(model.gather(orders))
    await until(lambda: model.fleet.board.n_waiting() == len(orders))
    held.with_suffix(".go").touch()
    await first
    return await others


@pytest.mark.parametrize(("way", "place"), [("segfault", 0), ("exit", 7), ("abort", 15)])
def test_of_sixteen_requests_in_a_batch_only_the_one_that_ends_the_process_fails(
    model: Served, tmp_path: Path, way: str, place: int
) -> None:
    orders = [f"x{number}" for number in range(16)]
    orders[place] = way

    answers = model.run(in_one_batch(model, orders, tmp_path / "held"))

    guilty = answers.pop(place)
    assert type(guilty) is ModelError
    assert [answer["text"] for answer in answers] == [o for o in orders if o != way]


def test_a_batch_whose_process_is_killed_from_outside_is_answered(
    model: Served, tmp_path: Path
) -> None:
    held = tmp_path / "held"

    async def scenario() -> list[Any]:
        answers = begin(model.gather(["a", f"hold {held}", "b", "c"]))
        await until(held.exists)
        pid = model.kill()
        held.with_suffix(".go").touch()
        return [*await answers, pid]

    *answers, pid = model.run(scenario())

    assert [answer["text"][:4] for answer in answers] == ["a", "hold", "b", "c"]
    assert pid not in {answer["pid"] for answer in answers}


def test_what_waited_in_a_process_that_dies_is_run_by_the_next_one_as_if_nothing_had_been(
    model: Served, tmp_path: Path
) -> None:
    held = tmp_path / "held"

    async def scenario() -> list[Any]:
        running = begin(model.gather([f"hold {held}"]))
        await until(held.exists)
        waiting = begin(model.gather(["a", "b", "c"]))
        await until(lambda: model.fleet.board.n_waiting() == 3)
        model.kill()
        held.with_suffix(".go").touch()
        return [*await running, *await waiting]

    ran, *waited = model.run(scenario())

    assert ran["n"] == 1
    assert [(answer["text"], answer["n"]) for answer in waited] == [("a", 3), ("b", 3), ("c", 3)]


def test_a_handler_that_may_not_be_run_again_is_not(once: Served, tmp_path: Path) -> None:
    held = tmp_path / "held"

    async def scenario() -> list[Any]:
        running = begin(once.gather([f"hold {held}"]))
        await until(held.exists)
        waiting = begin(once.gather(["a", "b"]))
        await until(lambda: once.fleet.board.n_waiting() == 2)
        once.kill()
        return [*await running, *await waiting]

    ran, *waited = once.run(scenario())

    assert isinstance(ran, ReplicaDiedError)
    assert [answer["text"] for answer in waited] == ["a", "b"]


def test_a_stream_that_has_given_nothing_yet_is_begun_again(model: Served, tmp_path: Path) -> None:
    chunks, error = model.read(f"once {tmp_path / 'mark'} kill; b; c")

    assert error is None
    assert [chunk["text"].split()[0] for chunk in chunks] == ["once", "b", "c"]
    assert len({chunk["pid"] for chunk in chunks}) == 1


def test_a_stream_that_has_given_chunks_ends_with_an_error(model: Served, tmp_path: Path) -> None:
    held = tmp_path / "held"

    async def scenario() -> list[Any]:
        stream = model.model.stream(f"a; hold {held}; c")
        first = await anext(stream)
        await until(held.exists)
        model.kill()
        return [first, await asyncio.gather(anext(stream), return_exceptions=True)]

    first, (error,) = model.run(scenario())

    assert first["text"] == "a"
    assert isinstance(error, ReplicaDiedError)


def test_a_stream_that_ends_its_process_again_and_again_fails(model: Served) -> None:
    chunks, error = model.read("kill; b")

    assert chunks == []
    assert type(error) is ModelError


def test_a_stream_of_a_handler_that_may_not_be_run_again_is_not(
    once: Served, tmp_path: Path
) -> None:
    chunks, error = once.read(f"once {tmp_path / 'mark'} kill; b")

    assert chunks == []
    assert isinstance(error, ReplicaDiedError)


def test_a_death_in_a_hook_beside_infer_costs_nobody_else_an_answer(tmp_path: Path) -> None:
    with served(Preprocessing) as model:
        answers = model.ask_all(["x | a", "exit | b", "x | c | exit", "x | d"])
        again = model.ask(f"x | e | once {tmp_path / 'mark'} exit")

    assert [type(answer) for answer in answers] == [dict, ModelError, ModelError, dict]
    assert [answers[0]["text"], answers[3]["text"], again["text"][0]] == ["a", "d", "e"]


def test_the_end_of_a_process_is_known_at_once(model: Served) -> None:
    async def scenario() -> float:
        process = model.keeper.process
        assert process is not None
        lane = model.model.engine._lane
        begun = time.monotonic()
        model.kill()
        await process.exited
        await until(lambda: lane.n_serving == 0)
        return time.monotonic() - begun

    took_s = model.run(scenario())

    assert took_s < 0.1
    assert model.ask("a")["text"] == "a"


def test_one_request_alone_that_ends_processes_holds_nobody_up(model: Served) -> None:
    for _ in range(2):
        with pytest.raises(ModelError):
            model.ask("exit")

    assert model.keeper.n_failures == 0
    assert model.ask("a")["text"] == "a"


def test_requests_are_admitted_while_the_only_replica_is_restarted(model: Served) -> None:
    async def scenario() -> tuple[list[str], Any]:
        model.kill()
        await until(lambda: model.model.state != "ready")
        states = [model.model.state]
        answer = await model.model.predict("a")
        return [*states, model.model.state], answer

    states, answer = model.run(scenario())

    assert states == ["restarting", "ready"]
    assert answer["text"] == "a"


def test_with_two_replicas_the_death_of_one_is_not_seen() -> None:
    async def scenario(model: Served) -> tuple[str, list[Any]]:
        lane = model.model.engine._lane
        os.kill(model.pid(0), signal.SIGKILL)
        await until(lambda: lane.n_serving == 1)
        state = model.model.state
        answers = await model.gather([f"x{number}" for number in range(8)])
        await until(lambda: lane.n_serving == 2)
        return state, answers

    with served(Obedient, replicas={"count": 2}) as model:
        living = model.pid(1)
        state, answers = model.run(scenario(model))

    assert state == "ready"
    assert {answer["pid"] for answer in answers} == {living}
