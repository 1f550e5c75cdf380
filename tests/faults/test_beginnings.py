"""Processes that die or hang while they load or warm up, at the start and when one is replaced."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from tests.faults.client import Plan
from tests.faults.conftest import SEED
from tests.faults.deadly import BY_NAME, SUDDEN, Deadly, Death
from tests.faults.dying import LIMITS, Deaths, Dying, is_alive, until, until_noted
from tests.faults.notebook import Notebook
from tests.faults.rig import require, require_healthy
from tests.faults.table import Mode, Outcome
from tests.http import waiting

from mlserve import Batching, Model, ModelServer, Replicas, Restart, ServerSettings
from mlserve.testing import running

pytestmark = pytest.mark.slow

OFTEN = Restart(failures=100, backoff_s=0.01, max_backoff_s=0.01)
LOAD_TIMEOUT_S = 3.0


def new_server(load_timeout_s: float = 60.0) -> ModelServer:
    options = ServerSettings(
        freeze_gc=False,
        access_log=False,
        on_load_failure="serve",
        load_timeout_s=load_timeout_s,
    )
    return ModelServer(title="beginnings", settings=options)


def add(
    server: ModelServer, folder: Path, name: str, *fates: str, restart: Restart = OFTEN
) -> Dying:
    """Add a model, and say what its processes suffer while they begin, in turn."""
    notes = Notebook(folder / name)
    notes.folder.mkdir()
    notes.note("fates", *fates)
    mode = Mode(name, 8, "predict", Deadly, "process")
    server.add(
        name,
        partial(Deadly, notes),
        batching=Batching(max_size=mode.max_size),
        limits=LIMITS,
        replicas=Replicas(placement="process", restart=restart),
    )
    return Dying(0, server, mode, notes, BY_NAME["killed"], random.Random(f"{SEED} {name}"))


@contextmanager
def serving(*all_dying: Dying) -> Iterator[None]:
    with running(all_dying[0].server, wait_ready=False, timeout_s=30) as client:
        for dying in all_dying:
            dying.port = client.base_url.port or 80
        yield


def model_of(dying: Dying) -> Model:
    return dying.server.model_for(dying.mode.name)


def healthy(dying: Dying, n: int = 10, span_s: float = 0.0) -> list[Plan]:
    dice = dying.dice
    return [dying.plan(f"healthy-{number}", at_s=dice.random() * span_s) for number in range(n)]


async def strike_each(dying: Dying, deaths: Sequence[Death]) -> None:
    """Send the processes that wait for it the signals of their deaths, in turn."""
    notes = dying.notes
    for number, death in enumerate(death for death in deaths if death.signal):
        await until_noted(notes, "waits", number + 1)
        os.kill(int(notes.read("waits")[number]), death.signal)


def test_a_process_that_dies_at_the_start_is_started_again_however_it_has_died(
    tmp_path: Path, deaths: Deaths
) -> None:
    server = new_server()
    both = [
        add(server, tmp_path, stage, *(f"{stage}:{death.name}" for death in SUDDEN))
        for stage in ("load", "warmup")
    ]

    async def play(dying: Dying) -> None:
        await strike_each(dying, SUDDEN)
        await until(lambda: model_of(dying).state == "ready")
        await dying.play(healthy(dying))

    with serving(*both):
        asyncio.run(play_both(play, both))

    for dying in both:
        dying.require_sound(deaths)
        deaths.deaths += len(SUDDEN)
        require_healthy(dying.records, dying.mode)
        begun = dying.notes.read("begun")
        assert len(begun) == len(set(begun)) == len(SUDDEN) + 1


def test_a_process_that_dies_at_the_start_again_and_again_is_given_up(
    tmp_path: Path, deaths: Deaths
) -> None:
    fates = ["load:exit", "warmup:segfault", "load:abort"] * 3
    restart = Restart(failures=4, backoff_s=0.01, max_backoff_s=0.01)
    dying = add(new_server(), tmp_path, "mortal", *fates, restart=restart)

    with serving(dying):
        waiting.until(lambda: model_of(dying).state == "failed")
        asyncio.run(dying.play(healthy(dying, 1)))

    dying.require_sound(deaths)
    deaths.deaths += 4
    require(Outcome(503, "model_failed"), dying.records)
    assert len(dying.notes.read("begun")) == 4


def test_requests_wait_while_the_processes_that_replace_one_die_at_their_start(
    tmp_path: Path, deaths: Deaths
) -> None:
    server = new_server()
    fates = {"some": SUDDEN[::2], "others": SUDDEN[1::2]}
    both = [
        add(server, tmp_path, name, "", *(f"load:{death.name}" for death in fates[name]))
        for name in fates
    ]

    async def play(dying: Dying) -> None:
        await until(lambda: model_of(dying).state == "ready")
        async with asyncio.TaskGroup() as group:
            group.create_task(dying.play(healthy(dying, 30, span_s=1.0)))
            await asyncio.sleep(0.1)  # somewhere amid the load
            await dying.strike(dying.pid())
            await strike_each(dying, fates[dying.mode.name])

    with serving(*both):
        asyncio.run(play_both(play, both))

    for dying in both:
        n_dead = 1 + len(fates[dying.mode.name])
        dying.require_sound(deaths)
        deaths.deaths += n_dead
        require_healthy(dying.records, dying.mode)
        assert len(dying.notes.read("begun")) == n_dead + 1


async def play_both(play: Callable[[Dying], Awaitable[None]], both: Sequence[Dying]) -> None:
    await asyncio.gather(*(play(dying) for dying in both))


def test_what_hangs_at_its_start_is_ended_when_its_time_is_over(
    tmp_path: Path, deaths: Deaths
) -> None:
    server = new_server(load_timeout_s=LOAD_TIMEOUT_S)
    hanging = [
        add(server, tmp_path, f"{stage}-{what}", f"{stage}:{what}")
        for stage in ("load", "warmup")
        for what in ("hang", "hang_with_gil")
    ]
    alone = new_server(load_timeout_s=LOAD_TIMEOUT_S)
    dying = add(alone, tmp_path, "mortal", "", "load:hang_with_gil", "")

    async def play() -> None:
        await dying.strike(dying.pid())
        await dying.play(healthy(dying))

    with serving(dying):
        waiting.until(lambda: model_of(dying).state == "ready", 2 * LOAD_TIMEOUT_S)
        asyncio.run(play())
    began = time.monotonic()
    with serving(*hanging):
        waiting.until(lambda: all(model_of(other).state == "failed" for other in hanging))
        took_s = time.monotonic() - began
        pids = [int(pid) for other in hanging for pid in other.notes.read("begun")]
        waiting.until(lambda: not any(map(is_alive, pids)), 2.0)
        reasons = {model_of(other).engine.lifecycle.reason for other in hanging}

    dying.require_sound(deaths)
    deaths.deaths += 2 + len(hanging)
    require_healthy(dying.records, dying.mode)
    assert len(dying.notes.read("begun")) == 3
    assert took_s < 3 * LOAD_TIMEOUT_S
    assert reasons == {"loading failed with TimeoutError"}
