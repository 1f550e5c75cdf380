"""
Processes that die or hang amid their work: nothing is lost, and who is not guilty gets an answer.

Each way to die meets a full batch, streams and a crowd of clients, of a model each, at once.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest
from tests.faults.client import Plan, Record
from tests.faults.conftest import SEED
from tests.faults.deadly import (
    BY_NAME,
    DEATHS,
    DEVOURED_BYTES,
    Careful,
    Deadly,
    Death,
    memory_group,
)
from tests.faults.dying import (
    LIMITS,
    SLACK_S,
    Deaths,
    Dying,
    die_in_batch,
    die_in_crowd,
    die_in_streams,
    is_alive,
    note_recoveries,
)
from tests.faults.handler import N_CHUNKS
from tests.faults.notebook import Notebook
from tests.faults.rig import require_none
from tests.faults.table import AT_CHUNK, Mode, Outcome
from tests.http import waiting

from mlserve import Batching, ModelServer, Replicas, Restart, ServerSettings
from mlserve.testing import running

pytestmark = pytest.mark.slow

SIZE = 16
BATCHED = Mode("batched", SIZE, "predict", Deadly, "process")
STREAMING = Mode("streaming", 8, "stream", Deadly, "process")
CROWDED = Mode("crowded", 8, "predict", Deadly, "process")
CAREFUL = Mode("careful", 4, "predict", Careful, "process")
CAREFUL_STREAMS = Mode("careful", 4, "stream", Careful, "process")
QUICK = Restart(failures=100, backoff_s=0.01, max_backoff_s=0.01)


@dataclass(slots=True)
class Hall:
    """A running server of models that die."""

    port: int
    server: ModelServer
    notes: dict[str, Notebook]
    tally: Deaths

    def dying(self, mode: Mode, death: Death, place: int = 0) -> Dying:
        dice = random.Random(f"{SEED} {mode.path} {death.name} {place}")
        return Dying(self.port, self.server, mode, self.notes[mode.name], death, dice)


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory, deaths: Deaths) -> Iterator[Hall]:
    """All models on one server, for all deaths: what one leaves behind meets the next."""
    settings = ServerSettings(freeze_gc=False, access_log=False)
    server = ModelServer(title="deaths", settings=settings)
    notes = {}
    for mode in (BATCHED, STREAMING, CROWDED, CAREFUL):
        notes[mode.name] = Notebook(tmp_path_factory.mktemp(mode.name))
        server.add(
            mode.name,
            partial(mode.handler, notes[mode.name]),
            batching=Batching(max_size=mode.max_size),
            limits=LIMITS,
            replicas=Replicas(placement="process", restart=QUICK),
        )
    with running(server, timeout_s=30) as client:
        yield Hall(client.base_url.port or 80, server, notes, deaths)


@dataclass(slots=True)
class Cell:
    """What became of all that one way to die has met."""

    death: Death
    batch: list[Plan]
    """The requests of the full batch, in its order."""
    records: dict[str, list[Record]]
    """By model."""
    beyond_load_s: dict[str, list[float]]
    """How much longer than a load each recovery took, by model."""
    begun: list[str]
    """What the model of the full batch has run, in order."""

    def innocent(self, mode: Mode, name: str = "") -> list[Record]:
        found = [r for r in self.named(mode, name) if not r.plan.is_faulty]
        assert found
        return found

    def named(self, mode: Mode, name: str) -> list[Record]:
        return [r for r in self.records[mode.name] if r.plan.id.startswith(name)]


@pytest.fixture(scope="module", params=DEATHS, ids=lambda death: death.name)
def cell(request: pytest.FixtureRequest, hall: Hall) -> Cell:
    """Have one way to die meet everything."""
    death: Death = request.param
    in_batch, in_streams, in_crowd = everywhere = [
        hall.dying(mode, death) for mode in (BATCHED, STREAMING, CROWDED)
    ]
    n_dead = [len(dying.notes.read("died")) for dying in everywhere]
    place = DEATHS.index(death) * 2 % SIZE

    async def die() -> list[Plan]:
        async with asyncio.TaskGroup() as group:
            batch = group.create_task(die_in_batch(in_batch, SIZE, place))
            group.create_task(die_in_streams(in_streams))
            group.create_task(die_in_crowd(in_crowd, n=120, span_s=1.2))
        return batch.result()

    batch = asyncio.run(die())
    for dying in everywhere:
        dying.require_sound(hall.tally)
    beyond_load_s = {
        dying.mode.name: note_recoveries(dying, n, hall.tally)
        for dying, n in zip(everywhere, n_dead, strict=True)
    }
    records = {dying.mode.name: dying.records for dying in everywhere}
    return Cell(death, batch, records, beyond_load_s, in_batch.notes.read("run"))


def blame(death: Death) -> Outcome:
    """Say what a request gets that has ended two processes, or was there when they were ended."""
    if death.signal:
        return Outcome(200)
    return Outcome(504, "deadline_exceeded") if death.is_hang else Outcome(500, "model_error")


def require_each(records: list[Record], *allowed: Outcome) -> None:
    """Check that each request was answered in one of these ways."""
    others = [
        r for r in records if not any(o.allows(r.status, r.code, r.n_chunks) for o in allowed)
    ]
    require_none(f"none of {allowed}", others)


def test_of_sixteen_in_a_batch_fifteen_are_answered_and_only_the_guilty_one_fails(
    cell: Cell,
) -> None:
    ids = [plan.id for plan in cell.batch]
    first = cell.begun.index(ids[0])

    # The last one may have been in its `preprocess` still when the batch began.
    assert cell.begun[first : first + SIZE - 1] == ids[:-1]
    require_each(cell.innocent(BATCHED), Outcome(200))
    require_each(cell.named(BATCHED, "guilty"), blame(cell.death))


def test_a_stream_of_which_nothing_was_sent_is_begun_again_and_others_end_with_an_error(
    cell: Cell,
) -> None:
    whole, cut = Outcome(200, None, N_CHUNKS), Outcome(200, "replica_died", AT_CHUNK)

    require_each(cell.innocent(STREAMING, "fresh"), whole)
    require_each(cell.innocent(STREAMING, "cut"), cut)
    require_each(cell.innocent(STREAMING, "after"), whole)
    require_each(cell.named(STREAMING, "guilty-infer"), blame(cell.death))
    # Its last chunk may have been on its way out of the process that it ended.
    one_less = Outcome(200, "replica_died", AT_CHUNK - 1)
    require_each(cell.named(STREAMING, "guilty-place"), cut, one_less)


def test_a_crowd_of_clients_sees_nothing_of_it(cell: Cell) -> None:
    require_each(cell.innocent(CROWDED), Outcome(200))
    require_each(cell.named(CROWDED, "guilty"), blame(cell.death))


def test_the_next_healthy_request_is_answered_as_soon_as_a_process_is_loaded(cell: Cell) -> None:
    for took_s in cell.beyond_load_s.values():
        assert took_s
        assert max(took_s) < SLACK_S


@pytest.mark.parametrize("place", [1, 4, 9, 15])
def test_at_whatever_place_of_the_batch_the_guilty_one_is(place: int, hall: Hall) -> None:
    dying = hall.dying(BATCHED, BY_NAME["segfault"], place)
    n_dead = len(dying.notes.read("died"))

    plans = asyncio.run(die_in_batch(dying, SIZE, place))

    dying.require_sound(hall.tally)
    failed = [record.plan for record in dying.records if record.status != 200]
    assert failed == [plans[place]]
    assert max(note_recoveries(dying, n_dead, hall.tally)) < SLACK_S


def test_a_process_that_the_system_kills_for_its_memory_costs_nobody_an_answer(hall: Hall) -> None:
    dying = hall.dying(BATCHED, BY_NAME["killed"], SIZE)
    plans = [dying.plan(f"healthy-{number}") for number in range(SIZE)]
    plans.insert(SIZE // 2, dying.plan("glutton", "infer:devour"))
    pid = dying.pid()

    with ExitStack() as stack:
        try:
            members = stack.enter_context(memory_group(DEVOURED_BYTES // 2))
            members.write_text(str(pid))
        except OSError as exc:
            pytest.skip(f"No control group can be made here: {exc}")
        asyncio.run(dying.play(plans))
        waiting.until(lambda: not is_alive(pid))

    dying.require_sound(hall.tally)
    hall.tally.deaths += 1
    require_each(dying.records, Outcome(200))
    assert dying.pid() != pid


@pytest.mark.parametrize("name", ["segfault", "hang", "killed"])
def test_what_may_not_be_run_again_is_not_and_what_waited_is_run(name: str, hall: Hall) -> None:
    dying = hall.dying(CAREFUL, BY_NAME[name])
    waiting = [dying.plan(f"waiting-{number}") for number in range(6)]

    batch = asyncio.run(die_in_batch(dying, CAREFUL.max_size, 2, waiting))

    dying.require_sound(hall.tally)
    begun = dying.notes.read("run")
    ran = [record for record in dying.records if record.plan in batch]
    assert len(ran) == CAREFUL.max_size
    require_each(ran, Outcome(502, "replica_died"))
    require_each([record for record in dying.records if record not in ran], Outcome(200))
    assert [begun.count(record.plan.id) for record in dying.records] == [1] * len(dying.records)


@pytest.mark.parametrize("name", ["exit", "hang_with_gil", "segfaulted"])
def test_a_stream_that_may_not_be_begun_again_is_not(name: str, hall: Hall) -> None:
    dying = hall.dying(CAREFUL_STREAMS, BY_NAME[name])

    asyncio.run(die_in_streams(dying))

    dying.require_sound(hall.tally)
    begun = dying.notes.read("run")
    cut = Outcome(200, "replica_died", AT_CHUNK)
    for record in dying.records:
        if record.plan.id.startswith("after"):
            expected = [Outcome(200, None, N_CHUNKS)]
        elif record.plan.payload["fault"].startswith("infer"):
            expected = [Outcome(502, "replica_died")]
        elif record.plan.is_faulty:  # its last chunk may have been on its way, as above
            expected = [cut, Outcome(200, "replica_died", AT_CHUNK - 1)]
        else:
            expected = [cut]
        require_each([record], *expected)
    assert [begun.count(record.plan.id) for record in dying.records] == [1] * len(dying.records)
