"""Faults of replicas, queues and memory in every mode, each on a server of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from tests.faults.client import Plan, Record, play
from tests.faults.conftest import SYNC_MODES
from tests.faults.flaky import Bounded, Flaky, Held
from tests.faults.handler import FaultyHandler
from tests.faults.notebook import Notebook
from tests.faults.rig import N_HEALTHY, Rig, require, require_healthy
from tests.faults.table import PLACED_MODES, TOO_LATE, Mode, Outcome, new_plan
from tests.http.waiting import until

from mlserve import Limits, ModelServer, Replicas, Restart
from mlserve.testing import running

pytestmark = pytest.mark.slow

_RAISED = ("error", "exit", "interrupt", "cancelled", "memory", "oom")
_WAIT_S = 10.0


@pytest.fixture
def notes(tmp_path: Path) -> Notebook:
    """What the model of a test notes, and is told."""
    return Notebook(tmp_path)


def holding(mode: Mode, rig: Rig, n: int) -> list[Plan]:
    """Make requests that keep every place of the model busy."""
    plans = [new_plan(mode, f"holding-{number}", rig.dice, at_s=0.0) for number in range(n)]
    for plan in plans:
        plan.payload["text"] = f"hold {plan.id}"
    return plans


def play_behind(
    port: int,
    holders: list[Plan],
    plans: list[Plan],
    release: Callable[[], None],
    server: ModelServer,
    mode: Mode,
) -> tuple[list[Record], list[Record]]:
    """Send `plans` once `holders` keep the model busy; let go when all of them are done or wait."""
    model = server.model_for(mode.name)

    async def play_all() -> tuple[list[Record], list[Record]]:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(play(port, holders))
            await asyncio.to_thread(until, lambda: is_held(len(holders)))
            second = group.create_task(play(port, [p for p in plans if not is_patient(p)]))
            await second
            third = group.create_task(play(port, [p for p in plans if is_patient(p)]))
            n_patient = sum(is_patient(plan) for plan in plans)
            await asyncio.to_thread(until, lambda: in_flight() >= len(holders) + n_patient)
            release()
        return first.result(), [*second.result(), *third.result()]

    def in_flight() -> int:
        return model.statistics().in_flight

    def is_held(n: int) -> bool:
        return in_flight() == n and model.statistics().queued == 0

    def is_patient(plan: Plan) -> bool:
        return plan.behaviour == "patient" and "X-Request-Timeout" not in plan.headers

    return asyncio.run(play_all())


@pytest.mark.parametrize("timeout", [None, "0.08"], ids=["leaves", "runs out of time"])
def test_what_is_not_wanted_any_more_while_it_waits_is_never_run(
    timeout: str | None, mode: Mode, rig: Rig, notes: Notebook
) -> None:
    server = mode.server(partial(Held, notes), replicas=Replicas(max_streams=2))
    holders = holding(mode, rig, 2 if mode.is_stream else 1)
    options: dict[str, Any] = {"behaviour": "leaves", "leave_after_s": 0.05}
    if timeout is not None:
        options = {"headers": {"X-Request-Timeout": timeout}}
    faulty = [
        new_plan(mode, f"faulty-{number}", rig.dice, is_faulty=True, **options)
        for number in range(5)
    ]
    healthy = rig.healthy(mode, 5)

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        held, records = play_behind(
            port, holders, [*faulty, *healthy], partial(notes.note, "released"), server, mode
        )
        rig.note(held)
        rig.note(records)
        rig.require_recovered(port, mode, server)

    require_healthy([*held, *(r for r in records if not r.plan.is_faulty)], mode)
    require(TOO_LATE if timeout else Outcome(None), [r for r in records if r.plan.is_faulty])
    begun = set(notes.read("run"))
    assert begun >= {plan.id for plan in [*holders, *healthy]}
    assert begun.isdisjoint(plan.id for plan in faulty)


def test_what_finds_no_place_is_refused_at_once_and_the_rest_is_answered(
    mode: Mode, rig: Rig, notes: Notebook
) -> None:
    limits = Limits(timeout_s=_WAIT_S, stream_timeout_s=_WAIT_S, max_queue_size=4)
    handler = partial(Held, notes)
    server = mode.server(handler, limits=limits, replicas=Replicas(max_streams=2))
    holders = holding(mode, rig, 2 if mode.is_stream else 1)
    model = server.model_for(mode.name)

    async def overflow(port: int) -> tuple[list[Record], list[Record]]:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(play(port, holders))
            await asyncio.to_thread(until, lambda: model.statistics().in_flight == len(holders))
            await asyncio.to_thread(until, lambda: model.statistics().queued == 0)
            crowd = [group.create_task(play(port, [plan])) for plan in rig.healthy(mode, 12)]
            refused = [task for task in crowd if task.done()]
            while len(refused) < 8:
                await asyncio.wait(set(crowd) - set(refused), return_when="FIRST_COMPLETED")
                refused = [task for task in crowd if task.done()]
            notes.note("released")
        waited = [task.result()[0] for task in crowd if task not in refused]
        return [task.result()[0] for task in refused], [*waited, *first.result()]

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        refused, served = asyncio.run(overflow(port))
        rig.note([*refused, *served], n_faults=len(refused))
        rig.require_recovered(port, mode, server)

    require(Outcome(503, "queue_full"), refused)
    assert all(int(record.answers[0].headers["retry-after"]) >= 1 for record in refused)
    assert len(served) == 4 + len(holders)
    require_healthy(served, mode)


@pytest.mark.parametrize(
    "mode", [mode for mode in PLACED_MODES if mode.name == "batched"], ids=lambda mode: mode.id
)
def test_a_batch_that_does_not_fit_into_memory_is_halved_and_nobody_notices(
    mode: Mode, rig: Rig, notes: Notebook
) -> None:
    server = mode.server(partial(Bounded, notes, 3))

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        for _ in range(4):
            records = rig.play(port, [rig.opener(mode), *rig.healthy(mode, 16)])
            require_healthy(records, mode)
        rig.require_recovered(port, mode, server)

    sizes = [int(size) for size in notes.read("size")]
    assert max(sizes) > 3
    first = next(number for number, size in enumerate(sizes) if size > 3)
    assert max(sizes[first + 40 :], default=0) <= 4  # what was learned is kept


@pytest.mark.parametrize(
    "mode",
    [mode for mode in SYNC_MODES if mode.id != "streaming-process"],
    ids=lambda mode: mode.id,
)
@pytest.mark.parametrize("hook", ["load", "warmup"])
def test_models_that_cannot_start_are_out_of_order_and_another_one_works(
    hook: str, mode: Mode, rig: Rig, tmp_path: Path
) -> None:
    server = mode.server(FaultyHandler, on_load_failure="serve")
    faulty = []
    for what in _RAISED:
        broken = replace(mode, name=f"broken-{what}")
        notes = Notebook(tmp_path / broken.name)
        notes.folder.mkdir()
        notes.note(f"fails-{hook}", what)
        replicas = Replicas(placement=mode.placement)
        server.add(broken.name, partial(Flaky, notes), replicas=replicas)
        faulty += [new_plan(broken, broken.name, rig.dice, is_faulty=True) for _ in range(2)]

    with running(server, wait_ready=False, timeout_s=15) as client:
        port = client.base_url.port or 80
        until(lambda: sum(model.state == "failed" for model in server.registry) == len(_RAISED))
        until(lambda: server.model_for(mode.name).state == "ready")
        rig.play_fault(port, mode, faulty, Outcome(503, "model_failed"))
        rig.require_recovered(port, mode, server)
        reasons = [model.engine.lifecycle.reason for model in server.registry]

    assert sum(str(reason).startswith("loading failed with") for reason in reasons) == len(_RAISED)


def with_reload(server: ModelServer, mode: Mode) -> FastAPI:
    """Add a route that reloads the model, on the event loop of the server."""
    app = server.build()

    @app.post("/reload")
    async def reload() -> str:
        await server.model_for(mode.name).reload()
        return "done"

    return app


def reloading(client: httpx2.Client) -> Callable[[], Awaitable[int]]:
    """Ask that route for a reload; gives the status."""

    async def reload() -> int:
        return (await asyncio.to_thread(client.post, "/reload")).status_code

    return reload


def play_while_reloading(
    rig: Rig, port: int, mode: Mode, reload: Callable[[], Awaitable[int]], n: int
) -> tuple[list[Record], list[int]]:
    """Send requests while `n` reloads run one after another; also give the reloads' statuses."""

    async def play_all() -> tuple[list[Record], list[int]]:
        records: list[Record] = []
        async with asyncio.TaskGroup() as group:
            reloads = group.create_task(reload_all())
            while not reloads.done():
                records += await play(port, rig.healthy(mode))
        return records, reloads.result()

    async def reload_all() -> list[int]:
        return [await reload() for _ in range(n)]

    return asyncio.run(play_all())


def test_reloads_under_load_lose_nothing_even_if_unload_raises(
    mode: Mode, rig: Rig, notes: Notebook
) -> None:
    server = mode.server(partial(Flaky, notes))
    notes.note("fails-unload", "", "error", "exit", "cancelled", "")
    app = with_reload(server, mode)

    with running(app, timeout_s=15) as client:
        port = client.base_url.port or 80
        records, statuses = play_while_reloading(rig, port, mode, reloading(client), 4)
        rig.note(records, n_faults=4)
        assert len(notes.read("unloaded")) == 4
        rig.require_recovered(port, mode, server)

    require_healthy(records, mode)
    assert statuses == [200] * 4
    assert len(notes.read("loaded")) == len(notes.read("unloaded")) == 1 + 4


def test_a_reload_that_fails_keeps_the_old_model(mode: Mode, rig: Rig, notes: Notebook) -> None:
    server = mode.server(partial(Flaky, notes))
    app = with_reload(server, mode)

    with running(app, timeout_s=15) as client:
        port = client.base_url.port or 80
        notes.note("fails-load", "error")
        records, statuses = play_while_reloading(rig, port, mode, reloading(client), 2)
        rig.note(records, n_faults=2)
        assert len(notes.read("unloaded")) == 2  # of what could not be loaded
        rig.require_recovered(port, mode, server)

    require_healthy(records, mode)
    assert statuses == [500] * 2
    assert len(notes.read("loaded")) == len(notes.read("unloaded")) == 1 + 2


def spread(rig: Rig, mode: Mode) -> list[Plan]:
    """Make requests for the time in which a replica is found to ail and is replaced."""
    plans = rig.healthy(mode, 40)
    for plan in plans:
        plan.at_s = rig.dice.random() * 0.4
    return plans


def test_while_an_ailing_replica_is_replaced_the_other_one_serves(
    mode: Mode, rig: Rig, notes: Notebook
) -> None:
    notes.note("ails", "0")
    replicas = Replicas(count=2, restart=Restart(backoff_s=0.01))
    server = mode.server(partial(Flaky, notes), replicas=replicas, health_period_s=0.05)

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        records = rig.play(port, spread(rig, mode))
        until(lambda: len(notes.read("loaded")) >= 3)
        rig.require_recovered(port, mode, server)

    require_healthy(records, mode)


def test_while_the_only_replica_is_replaced_requests_are_refused_or_wait_and_none_is_lost(
    mode: Mode, rig: Rig, notes: Notebook
) -> None:
    notes.note("ails", "0")
    notes.note("waits")
    restart = Restart(backoff_s=0.01)
    server = mode.server(
        partial(Flaky, notes), replicas=Replicas(restart=restart), health_period_s=0.05
    )
    model = server.model_for(mode.name)
    is_refused = mode.placement == "thread"

    async def play_all(port: int) -> tuple[list[Record], list[Record]]:
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(play(port, spread(rig, mode)))
            await asyncio.to_thread(until, lambda: len(notes.read("loaded")) == 2)
            held = group.create_task(play(port, rig.healthy(mode)))
            if is_refused:
                await held
            else:
                await asyncio.to_thread(until, lambda: model.statistics().queued >= N_HEALTHY)
            notes.note("may load")
        return beside.result(), held.result()

    with running(server, wait_ready=False, timeout_s=15) as client:
        port = client.base_url.port or 80
        until(lambda: model.state in ("ready", "restarting", "failed"))  # it ails at once
        beside, held = asyncio.run(play_all(port))
        rig.note([*beside, *held])
        until(lambda: model.state == "ready")
        after = rig.play(port, rig.healthy(mode))
        rig.require_recovered(port, mode, server)

    refused = [record for record in [*beside, *held] if record.status != 200]
    require(Outcome(503, "model_failed"), refused)
    assert all("retry-after" in record.answers[0].headers for record in refused)
    require_healthy([*after, *(r for r in [*beside, *held] if r.status == 200)], mode)
    assert all((record.status != 200) is is_refused for record in held)
    assert is_refused or not refused
    assert len(notes.read("loaded")) == len(notes.read("unloaded")) == 2
