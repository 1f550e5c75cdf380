"""Processes that die or hang while they load or warm up, at the start and when one is replaced."""

import asyncio
import os
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from tests.faults.conftest import SEED
from tests.faults.deadly import BY_NAME, SUDDEN, Deadly, Death
from tests.faults.dying import LIMITS, Deaths, Dying, is_alive, until_noted
from tests.faults.notebook import Notebook
from tests.faults.rig import require, require_healthy
from tests.faults.table import Mode, Outcome
from tests.http import waiting

from mlserve import Batching, ModelServer, Replicas, Restart, ServerSettings
from mlserve.testing import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

MODE = Mode("mortal", 8, "predict", Deadly, "process")
OFTEN = Restart(failures=100, backoff_s=0.01, max_backoff_s=0.01)
LOAD_TIMEOUT_S = 4.0


def notes_of(folder: Path, *fates: str) -> Notebook:
    """Say what the processes of a model suffer while they begin, in turn."""
    folder.mkdir()
    notes = Notebook(folder)
    notes.note("fates", *fates)
    return notes


def add(server: ModelServer, name: str, notes: Notebook, restart: Restart = OFTEN) -> None:
    server.add(
        name,
        partial(Deadly, notes),
        batching=Batching(max_size=MODE.max_size),
        limits=LIMITS,
        replicas=Replicas(placement="process", restart=restart),
    )


def new_server(load_timeout_s: float = 60.0) -> ModelServer:
    options = ServerSettings(
        freeze_gc=False,
        access_log=False,
        on_load_failure="serve",
        load_timeout_s=load_timeout_s,
    )
    return ModelServer(title="beginnings", settings=options)


def dying_of(port: int, server: ModelServer, notes: Notebook, death: Death) -> Dying:
    return Dying(port, server, MODE, notes, death, random.Random(SEED))


async def strike_each(notes: Notebook, deaths: Sequence[Death]) -> None:
    """Send the processes that wait for it the signals of their deaths, in turn."""
    for number, death in enumerate(death for death in deaths if death.signal):
        await until_noted(notes, "waits", number + 1)
        os.kill(int(notes.read("waits")[number]), death.signal)


@pytest.mark.parametrize("stage", ["load", "warmup"])
def test_a_process_that_dies_at_the_start_is_started_again_however_it_has_died(
    stage: str, tmp_path: Path, deaths: Deaths
) -> None:
    notes = notes_of(tmp_path / "notes", *(f"{stage}:{death.name}" for death in SUDDEN))
    server = new_server()
    add(server, MODE.name, notes)

    with running(server, wait_ready=False, timeout_s=30) as client:
        asyncio.run(strike_each(notes, SUDDEN))
        waiting.until(lambda: server.model_for(MODE.name).state == "ready")
        dying = dying_of(client.base_url.port or 80, server, notes, SUDDEN[0])
        asyncio.run(dying.play([dying.plan(f"healthy-{number}") for number in range(10)]))

    dying.require_sound(deaths)
    deaths.deaths += len(SUDDEN)
    require_healthy(dying.records, MODE)
    begun = notes.read("begun")
    assert len(begun) == len(set(begun)) == len(SUDDEN) + 1


def test_a_process_that_dies_at_the_start_again_and_again_is_given_up(
    tmp_path: Path, deaths: Deaths
) -> None:
    notes = notes_of(tmp_path / "notes", *["load:exit", "warmup:segfault", "load:abort"] * 3)
    server = new_server()
    add(server, MODE.name, notes, Restart(failures=4, backoff_s=0.01, max_backoff_s=0.01))

    with running(server, wait_ready=False, timeout_s=30) as client:
        waiting.until(lambda: server.model_for(MODE.name).state == "failed")
        dying = dying_of(client.base_url.port or 80, server, notes, SUDDEN[0])
        asyncio.run(dying.play([dying.plan("healthy")]))

    dying.require_sound(deaths)
    deaths.deaths += 4
    require(Outcome(503, "model_failed"), dying.records)
    assert len(notes.read("begun")) == 4


@pytest.mark.parametrize("fates", [SUDDEN[::2], SUDDEN[1::2]], ids=["some", "others"])
def test_requests_wait_while_the_processes_that_replace_one_die_at_their_start(
    fates: list[Death], tmp_path: Path, deaths: Deaths
) -> None:
    notes = notes_of(tmp_path / "notes", "", *(f"load:{death.name}" for death in fates))
    server = new_server()
    add(server, MODE.name, notes)

    async def play(dying: Dying) -> None:
        plans = [dying.plan(f"healthy-{number}") for number in range(30)]
        for plan in plans:
            plan.at_s = dying.dice.random()
        async with asyncio.TaskGroup() as group:
            group.create_task(dying.play(plans))
            await asyncio.sleep(0.1)  # somewhere amid the load
            await dying.strike(dying.pid())
            await strike_each(notes, fates)

    with running(server, timeout_s=30) as client:
        dying = dying_of(client.base_url.port or 80, server, notes, BY_NAME["killed"])
        asyncio.run(play(dying))

    dying.require_sound(deaths)
    deaths.deaths += 1 + len(fates)
    require_healthy(dying.records, MODE)
    assert len(notes.read("begun")) == 2 + len(fates)


def test_what_hangs_at_its_start_is_ended_when_its_time_is_over(
    tmp_path: Path, deaths: Deaths
) -> None:
    server = new_server(load_timeout_s=LOAD_TIMEOUT_S)
    hanging = {
        f"{stage}-{what}": notes_of(tmp_path / f"{stage}-{what}", f"{stage}:{what}")
        for stage in ("load", "warmup")
        for what in ("hang", "hang_with_gil")
    }
    for name, notes in hanging.items():
        add(server, name, notes)
    notes = notes_of(tmp_path / "notes", "", "load:hang_with_gil", "")
    add(server, MODE.name, notes)
    models = [server.model_for(name) for name in hanging]

    async def play(dying: Dying) -> None:
        await dying.strike(dying.pid())
        await dying.play([dying.plan(f"healthy-{number}") for number in range(10)])

    began = time.monotonic()
    with running(server, wait_ready=False, timeout_s=30) as client:
        waiting.until(lambda: server.model_for(MODE.name).state == "ready")
        dying = dying_of(client.base_url.port or 80, server, notes, BY_NAME["killed"])
        asyncio.run(play(dying))
        waiting.until(lambda: all(model.state == "failed" for model in models))
        took_s = time.monotonic() - began
        pids = [int(pid) for notes in hanging.values() for pid in notes.read("begun")]
        waiting.until(lambda: not any(map(is_alive, pids)), 2.0)
        reasons = {model.engine.lifecycle.reason for model in models}

    dying.require_sound(deaths)
    deaths.deaths += 2 + len(hanging)
    require_healthy(dying.records, MODE)
    assert len(notes.read("begun")) == 3
    assert took_s < 3 * LOAD_TIMEOUT_S
    assert reasons == {"loading failed with TimeoutError"}
