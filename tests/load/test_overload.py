"""More work than there is time for: what is counted, what is run, and who is answered at once."""

import asyncio
import multiprocessing
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest
from tests.faults.processes import ServedProcess, serving
from tests.figures import note
from tests.http.waiting import until
from tests.load.crowd import HEALTH, READY, after, connect, p99, post, probed_s, storm

from mlserve import (
    Batching,
    DeadlineExceededError,
    Limits,
    Model,
    ModelHandler,
    ModelServer,
    OverloadedError,
    QueueFullError,
    Replicas,
)
from mlserve.testing import running

N = 100
PER_S = 50  # what the crowded model can do


class Held(ModelHandler[str, str]):
    """Stands in `infer` until it may go, if that is asked for; notes what `infer` was given."""

    may_go: ClassVar[threading.Event]
    ran: ClassVar[list[str]]

    def infer(self, inputs: list[str]) -> list[str]:
        self.ran.extend(inputs)
        self._pass(inputs[0], "infer")
        return inputs

    def _pass(self, item: str, hook: str) -> None:
        if item == hook:
            assert self.may_go.wait(15)


class HeldElsewhere(Held):
    """Stands in the hooks of single requests."""

    def preprocess(self, request: str) -> str:
        self._pass(request, "preprocess")
        return request

    def stream(self, item: str) -> Iterator[str]:
        self._pass(item, "stream")
        yield item


@pytest.fixture
def events() -> Iterator[dict[str, Any]]:
    """Give what a handler class of one test needs; lets it go in the end."""
    may_go = threading.Event()
    yield {"may_go": may_go, "ran": []}
    may_go.set()


def counts(model: Model) -> tuple[int, int, int]:
    found = model.statistics()
    return found.in_flight, found.queued, found.running


def has_room(model: Model) -> bool:
    try:
        model.engine.require_room(1.0, 0)
    except QueueFullError:
        return False
    return True


async def holds(model: Model, expected: tuple[int, int, int]) -> None:
    await asyncio.to_thread(until, lambda: counts(model) == expected, 5)


@pytest.mark.parametrize(("max_size", "n_replicas"), [(1, 1), (4, 1), (4, 2)])
def test_what_runs_out_of_time_leaves_the_queue_at_once_and_the_thread_when_it_returns(
    max_size: int, n_replicas: int, events: dict[str, Any]
) -> None:
    handler, n_run = type("HeldHere", (Held,), events), max_size * n_replicas
    server = ModelServer().add(
        "m",
        handler,
        batching=Batching(max_size=max_size),
        replicas=Replicas(count=n_replicas),
        limits=Limits(max_queue_size=N),
    )

    async def scenario() -> list[Any]:
        async with server.started():
            model = server.model_for("m")
            late = [asyncio.ensure_future(model.predict("infer", timeout_s=0.1)) for _ in range(N)]
            await holds(model, (N, N - n_run, n_run))
            errors = await asyncio.gather(*late, return_exceptions=True)
            assert counts(model) == (0, 0, n_run)  # nobody waits, and the model is not free
            again = [asyncio.ensure_future(model.predict("next", timeout_s=9)) for _ in range(N)]
            await holds(model, (N, N, n_run))  # every place is free again, and nothing runs yet
            assert len(events["ran"]) == n_run
            with pytest.raises(QueueFullError):
                await model.predict("next")
            events["may_go"].set()
            await asyncio.gather(*again)
            await holds(model, (0, 0, 0))
            return errors

    errors = asyncio.run(asyncio.wait_for(scenario(), 15))

    assert all(isinstance(error, DeadlineExceededError) for error in errors)
    assert Counter(error.stage for error in errors) == {"infer": n_run, "queue": N - n_run}
    assert Counter(events["ran"]) == {"infer": n_run, "next": N}


def test_a_hook_of_one_request_that_runs_on_after_its_deadline_is_counted(
    events: dict[str, Any],
) -> None:
    handler = type("HeldHere", (HeldElsewhere,), events)
    server = ModelServer().add("m", handler, limits=Limits(max_queue_size=2))

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            with pytest.raises(DeadlineExceededError):
                await model.predict("preprocess", timeout_s=0.05)
            assert counts(model) == (0, 0, 1)
            with pytest.raises(DeadlineExceededError):
                await anext(model.stream("stream", timeout_s=0.05))
            assert counts(model) == (0, 0, 2)
            events["may_go"].set()
            await holds(model, (0, 0, 0))
            assert await model.predict("next") == "next"

    asyncio.run(asyncio.wait_for(scenario(), 15))


class Timed(ModelHandler[str, str]):
    """Takes 2 ms a batch of four; notes what `infer` was given."""

    batching = Batching(max_size=4)
    ran: ClassVar[list[str]]

    def infer(self, inputs: list[str]) -> list[str]:
        time.sleep(0.002)  # stands for the model
        self.ran.extend(inputs)
        return inputs


async def ask(model: Model, name: str, budget_s: float) -> tuple[str, float]:
    """Say what became of a request, and how long after its time it was answered."""
    started = time.perf_counter()
    try:
        await model.predict(name, timeout_s=budget_s)
        stage = "answered"
    except DeadlineExceededError as exc:
        stage = exc.stage
    except OverloadedError:
        stage = "refused"
    return stage, time.perf_counter() - started - budget_s


def expire(dice: random.Random) -> float:
    """Ask for more than there is time for, check what is run, and say how late it was at most."""
    ran: list[str] = []
    server = ModelServer().add(
        "m", type("TimedHere", (Timed,), {"ran": ran}), limits=Limits(max_queue_size=10_000)
    )
    budgets_s = {str(number): dice.uniform(0.01, 0.2) for number in range(1000)}

    async def scenario() -> dict[str, tuple[str, float]]:
        async with server.started():
            model = server.model_for("m")
            outcomes = await asyncio.gather(*(ask(model, *item) for item in budgets_s.items()))
            await holds(model, (0, 0, 0))
            return dict(zip(budgets_s, outcomes, strict=True))

    outcomes = asyncio.run(asyncio.wait_for(scenario(), 15))
    stages = Counter(stage for stage, _ in outcomes.values())
    never_run = {name for name, (stage, _) in outcomes.items() if stage in ("queue", "refused")}
    assert stages["queue"] > 10
    assert stages["answered"] > 10
    assert never_run.isdisjoint(ran)
    assert len(ran) == len(set(ran)) == len(outcomes) - len(never_run)
    return max(late_s for _, late_s in outcomes.values())


def test_what_expires_in_the_queue_is_answered_in_time_and_never_run() -> None:
    """A pause of the whole machine makes one attempt late, a queue that is slow makes all late."""
    dice = random.Random(7)

    attempts = (expire(dice) for _ in range(3))

    assert any(late_s < 0.15 for late_s in attempts)


def test_what_a_thread_has_finished_makes_room_before_the_loop_has_its_next_turn(
    events: dict[str, Any],
) -> None:
    limits = Limits(max_queue_size=1)
    server = ModelServer().add(
        "m", type("HeldHere", (Held,), events), batching=Batching(max_size=1), limits=limits
    )

    async def scenario() -> list[str]:
        async with server.started():
            model = server.model_for("m")
            first = asyncio.ensure_future(model.predict("infer"))
            await holds(model, (1, 0, 1))
            second = asyncio.ensure_future(model.predict("next"))
            await holds(model, (2, 1, 1))
            assert not has_room(model)
            events["may_go"].set()
            until(lambda: has_room(model), 2)  # the loop stands still
            return [await first, await second]

    assert asyncio.run(asyncio.wait_for(scenario(), 15)) == ["infer", "next"]


@pytest.mark.slow
def test_of_a_hundred_that_wait_the_fifty_whose_clients_leave_are_never_run(
    events: dict[str, Any],
) -> None:
    server = ModelServer().add("m", type("HeldHere", (Held,), events))
    model = server.model_for("m")

    with running(server) as client, ExitStack() as connections:
        port = client.base_url.port or 0
        waiting = [connections.enter_context(connect(port)) for _ in range(1 + N)]
        waiting[0].sendall(post("m/predict", b'"infer"'))
        until(lambda: counts(model) == (1, 0, 1))
        for number, connection in enumerate(waiting[1:]):
            connection.sendall(post("m/predict", b'"%d"' % number))
        until(lambda: counts(model) == (1 + N, N, 1))
        for connection in waiting[1::2]:
            connection.close()
        until(lambda: counts(model) == (1 + N // 2, N // 2, 1))
        events["may_go"].set()
        answers = [connection.recv(1000) for connection in (waiting[0], *waiting[2::2])]

    stayed = [str(number) for number in range(1, N, 2)]
    assert [answer.rpartition(b"\r\n")[2] for answer in answers] == [
        f'"{text}"'.encode() for text in ("infer", *stayed)
    ]
    assert sorted(events["ran"]) == sorted(["infer", *stayed])


@pytest.fixture(scope="module")
def served() -> Iterator[ServedProcess]:
    with serving("tests.load.served:app") as served:
        yield served


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="polls many sockets")
def test_under_fifty_times_the_load_refusals_come_at_once_and_probes_are_never_shed(
    served: ServedProcess,
) -> None:
    """A pause of the whole machine spoils one attempt, a server that is slow spoils them all."""
    attempts = (endure(served) for _ in range(3))

    assert any(slowest_s < 0.15 for slowest_s in attempts)


def endure(served: ServedProcess) -> float:
    """Serve amid a storm, and say how long refusals and probes took, of a hundred the slowest."""
    request = post("crowded/predict", b'{"text":"a"}')
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as beside:
        beside.submit(int).result()  # the process is there
        storming = beside.submit(storm, served.port, request, per_s=50 * PER_S, lasting_s=2.0)
        probed = {
            "health": probed_s(served.port, HEALTH, after(0.8)),
            "ready": probed_s(served.port, READY, after(0.8)),
        }
        was_still_on = not storming.done()
        outcome = storming.result()

    assert was_still_on
    assert outcome.statuses.keys() == {200, 503}
    assert outcome.statuses[503] > 30 * outcome.statuses[200]
    assert outcome.statuses[200] > 0.5 * 2.0 * PER_S
    assert all(value.isdigit() and int(value) >= 1 for value in outcome.retry_after)
    note("probes", slowest_s=max(map(p99, probed.values())))
    return max(p99(outcome.refused_s), *map(p99, probed.values()))
