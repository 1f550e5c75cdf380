"""Several HTTP processes share replicas that die: each of them keeps what it has sent."""

import asyncio
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass

import httpx2
import pytest
from tests.faults.client import Record, play
from tests.faults.conftest import SEED
from tests.faults.deadly import Careful, Deadly
from tests.faults.dying import Deaths, until_noted
from tests.faults.notebook import Notebook
from tests.faults.processes import ServedProcess, serving
from tests.faults.rig import require_healthy, require_none
from tests.faults.table import Mode, new_plan
from tests.http.waiting import until

pytestmark = pytest.mark.slow

SHARED = Mode("shared", 8, "predict", Deadly, "process")
CAREFUL = Mode("careful", 8, "predict", Careful, "process")


@dataclass(slots=True)
class Shared:
    """A server with two HTTP processes, and what its models note."""

    served: ServedProcess
    notes: dict[str, Notebook]

    def client_of(self, wanted: int = 0, other: int = 0) -> httpx2.Client:
        """Connect to the HTTP process that is wanted, or to any but the other one."""
        for _ in range(200):
            client = httpx2.Client(base_url=self.served.url, timeout=10)
            pid = int(client.get("/pid").json())
            if pid == wanted or (not wanted and pid != other):
                return client
            client.close()
        raise AssertionError("No connection has led to that process.")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    notes = {mode.name: Notebook(folder / mode.name) for mode in (SHARED, CAREFUL)}
    for notebook in notes.values():
        notebook.folder.mkdir()
    with serving("tests.faults.shared:app", "--workers", "2", FAULTS_NOTES=folder) as served:
        yield Shared(served, notes)


def kill_replica(notes: Notebook) -> None:
    os.kill(int(notes.read("loaded")[-1].split()[0]), signal.SIGKILL)


def test_what_several_processes_have_sent_is_answered_when_the_replica_dies(
    shared: Shared, deaths: Deaths
) -> None:
    dice = random.Random(SEED)
    notes = shared.notes[SHARED.name]
    plans = [new_plan(SHARED, f"healthy-{n}", dice, at_s=dice.random() * 1.2) for n in range(120)]

    async def play_all() -> None:
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(play(shared.served.port, plans))
            for n_loaded in (1, 2):
                await asyncio.sleep(0.3)  # somewhere amid the load
                kill_replica(notes)
                await until_noted(notes, "loaded", n_loaded + 1)
        records.extend(playing.result())

    records: list[Record] = []
    asyncio.run(play_all())

    deaths.note(records)
    deaths.deaths += 2
    require_none("lost", [record for record in records if record.is_lost])
    require_none("crossed", [record for record in records if not record.is_own])
    require_healthy(records, SHARED)


def test_a_process_that_learns_late_of_a_death_has_nothing_run_twice(shared: Shared) -> None:
    notes = shared.notes[CAREFUL.name]
    with ExitStack() as clients, ThreadPoolExecutor(2) as pool:
        asking = clients.enter_context(closing(shared.client_of()))
        pid = int(asking.get("/pid").json())
        blocking = clients.enter_context(closing(shared.client_of(wanted=pid)))
        other = clients.enter_context(closing(shared.client_of(other=pid)))
        request = {"text": "held", "fault": "infer:wait"}
        headers = {"X-Request-Id": "held"}
        held = pool.submit(asking.post, CAREFUL.path, json=request, headers=headers)
        notes.wait_for("waits")
        blocked = pool.submit(blocking.post, "/block/2")
        threading.Event().wait(0.2)
        kill_replica(notes)
        until(lambda: len(notes.read("loaded")) == 2)
        meanwhile = other.post(CAREFUL.path, json={"text": "meanwhile"})
        assert not blocked.done()
        notes.note("held")
        answer = held.result(10)

    assert meanwhile.status_code == 200
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "replica_died")
    assert notes.read("run").count("held") == 1
