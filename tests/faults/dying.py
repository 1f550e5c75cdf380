"""Having processes die while they have something to do, and counting what became of that."""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.faults.client import Plan, Record, ask, play
from tests.faults.deadly import Death
from tests.faults.notebook import Notebook
from tests.faults.rig import Tally, require_none
from tests.faults.table import Mode, new_plan

from mlserve import Limits, ModelServer
from mlserve.processes.lane import RemoteLane

HARD_TIMEOUT_S = 1.0
LIMITS = Limits(timeout_s=10.0, stream_timeout_s=10.0, hard_timeout_s=HARD_TIMEOUT_S)
SLACK_S = 1.0
"""How much longer than a load it may take until the next healthy request is answered."""
WAIT_S = 10.0


@dataclass(slots=True)
class Deaths(Tally):
    """What the deaths of processes have cost."""

    deaths: int = 0
    """Processes that have died, or hung and were killed."""
    recoveries_s: list[float] = field(default_factory=list)
    """From each fault's end to the next healthy answer."""
    beyond_load_s: list[float] = field(default_factory=list)
    """The same without the load of the process that gave it."""

    def figures(self) -> dict[str, Any]:
        """Give what stands in the report."""
        return {
            "seed": self.seed,
            "sent": self.sent,
            "accepted": self.accepted,
            "lost": self.lost,
            "crossed": self.crossed,
            "faults": self.faults,
            "deaths": self.deaths,
            "recovery_p50_s": median(self.recoveries_s or [0.0]),
            "recovery_max_s": max(self.recoveries_s, default=0.0),
            "beyond_load_p50_s": median(self.beyond_load_s or [0.0]),
            "beyond_load_max_s": max(self.beyond_load_s, default=0.0),
        }


@dataclass(slots=True)
class Dying:
    """
    One death, or some of a kind, in one model.

    Args:
        port: Where the server is.
        server: The server.
        mode: The model.
        notes: What its handlers note.
        death: What happens.
        dice: Decides contents and times.
    """

    port: int
    server: ModelServer
    mode: Mode
    notes: Notebook
    death: Death
    dice: random.Random
    records: list[Record] = field(default_factory=list)

    def plan(self, name: str, fault: str = "", at_s: float = 0.0) -> Plan:
        """Make a request, which is innocent even if it waits in the process."""
        return new_plan(self.mode, name, self.dice, {"fault": fault}, at_s=at_s)

    def guilty(self, stage: str) -> Plan:
        """Make a request that ends the process, or waits while the test does it."""
        plan = self.plan(f"guilty-{stage}")
        what = "wait" if self.death.signal else self.death.name
        plan.payload |= {"fault": f"{stage}:{what}", "hold_s": 0.05}
        plan.is_faulty = True
        return plan

    async def play(self, plans: Sequence[Plan]) -> None:
        """Send requests at their times."""
        self.records += await play(self.port, plans)

    async def ask(self, plan: Plan) -> None:
        """Send one request."""
        self.records.append(await ask(self.port, plan))

    async def strike(self, pid: int) -> None:
        """Send a process the signal of this death."""
        os.kill(pid, self.death.signal)
        self.notes.note("died", f"{pid} {time.monotonic():.3f}")

    async def strike_waiting(self, *victims: Plan) -> None:
        """Do it while all of these wait in the process."""
        if self.death.signal:
            n_before = len(self.notes.read("waits"))
            await until_noted(self.notes, "waits", n_before + len(victims))
            await self.strike(int(self.notes.read("waits")[-1]))
            self.release(*victims)

    def release(self, *plans: Plan) -> None:
        """Let requests go on that wait in the process, now and whenever they run again."""
        for plan in plans:
            self.notes.note(plan.id)

    async def until_queued(self, n: int) -> None:
        """Wait until so many requests wait in the queue."""
        model = self.server.model_for(self.mode.name)
        await until(lambda: model.statistics().queued == n)

    async def until_held(self, n: int) -> None:
        """Wait until the process has so many requests, and none is on its way."""
        lane = self.server.model_for(self.mode.name).engine._lane
        assert isinstance(lane, RemoteLane)
        rows = lane._board.replicas
        await until(lambda: sum(row.held for row in rows) >= n)

    def pid(self) -> int:
        """Give the process that was loaded last."""
        return int(self.notes.read("loaded")[-1].split()[0])

    def require_sound(self, tally: Deaths) -> None:
        """Count what was sent: none of it may be lost, or be given what belongs to another."""
        tally.note(self.records)
        require_none("lost", [record for record in self.records if record.is_lost])
        require_none("crossed", [record for record in self.records if not record.is_own])


async def until(condition: Callable[[], bool]) -> None:
    """Wait on the event loop until a condition holds that only looking at it can tell."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.005)


async def until_noted(notes: Notebook, topic: str, n: int) -> None:
    """Wait until so much was noted."""
    await until(lambda: len(notes.read(topic)) >= n)


async def die_in_batch(
    dying: Dying, size: int, place: int, behind: Sequence[Plan] = ()
) -> list[Plan]:
    """Have one of a full batch end the process, while others wait; gives the batch in its order."""
    opener = dying.plan("opener", "infer:wait")
    plans = [dying.plan(f"healthy-{number}") for number in range(size)]
    plans[place] = guilty = dying.guilty("infer")
    n_before = len(dying.notes.read("waits"))
    async with asyncio.TaskGroup() as group:
        group.create_task(dying.ask(opener))
        await until_noted(dying.notes, "waits", n_before + 1)
        for number, plan in enumerate((*plans, *behind), 1):
            group.create_task(dying.ask(plan))
            await dying.until_queued(number)
        await dying.until_held(1 + len(plans) + len(behind))
        striking = group.create_task(dying.strike_waiting(guilty))
        await asyncio.sleep(0)  # it looks first at what waits before this one
        dying.release(opener)
        await striking
    await dying.ask(dying.plan("after"))
    return plans


async def die_in_streams(dying: Dying) -> None:
    """
    Have two streams end the process, one before its first chunk, one amid its chunks.

    Of the others, too, some wait for their first chunk and some have had two.
    """
    others = [dying.plan(f"fresh-{number}", "infer:wait") for number in range(3)]
    others += [dying.plan(f"cut-{number}", "place:wait") for number in range(3)]
    guilty = [dying.guilty("infer"), dying.guilty("place")]
    n_before = len(dying.notes.read("waits"))
    async with asyncio.TaskGroup() as group:
        group.create_task(dying.play(others))
        await until_noted(dying.notes, "waits", n_before + len(others))
        pid = dying.pid()
        striking = group.create_task(dying.strike_waiting(*guilty))
        await asyncio.sleep(0)
        group.create_task(dying.play(guilty))
        await striking
        await until(lambda: not is_alive(pid))
        dying.release(*others)
    await dying.ask(dying.plan("after"))


async def die_in_crowd(dying: Dying, n: int, span_s: float) -> None:
    """Have the process die while many clients send requests, however it fares."""
    dice = dying.dice
    plans = [dying.plan(f"healthy-{number}", at_s=dice.random() * span_s) for number in range(n)]
    if not dying.death.signal:
        plans += [dying.guilty("infer")]
        plans[-1].at_s = span_s / 4
    async with asyncio.TaskGroup() as group:
        group.create_task(dying.play(plans))
        for _ in range(2 if dying.death.signal else 0):
            n_loaded = len(dying.notes.read("loaded"))
            await asyncio.sleep(span_s / 4)  # somewhere amid the load
            await dying.strike(dying.pid())
            await until_noted(dying.notes, "loaded", n_loaded + 1)
    await dying.ask(dying.plan("after"))


def is_alive(pid: int) -> bool:
    """Say whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def note_recoveries(dying: Dying, n_before: int, tally: Deaths) -> list[float]:
    """
    Note how long it took after each fault's end until a healthy request was answered.

    Args:
        dying: What has happened.
        n_before: How many deaths of the model were noted before that.
        tally: Counts.

    Returns:
        How much longer than the load of a process each took, in seconds.
    """
    healthy = [record for record in dying.records if not record.plan.is_faulty]
    ages_s = dict(line.split() for line in dying.notes.read("loaded"))
    dead: list[tuple[str, float]] = []
    for line in dying.notes.read("died")[n_before:]:
        pid, at = line.split()
        goes_on_s = HARD_TIMEOUT_S if dying.death.is_hang else dying.death.after_s
        dead.append((pid, float(at) + goes_on_s))
    tally.deaths += len(dead)
    found = []
    for number, (pid, ended_at) in enumerate(dead):
        answers = [r for r in healthy if r.status == 200 and r.ended_at > ended_at]
        answer = min((r for r in answers if str(r.pid) != pid), key=lambda r: r.ended_at)
        if number + 1 < len(dead) and dead[number + 1][1] < answer.ended_at:
            continue  # the same fault has ended the next process, too
        took_s = answer.ended_at - ended_at
        found.append(took_s - float(ages_s[str(answer.pid)]))
        tally.recoveries_s.append(took_s)
        tally.beyond_load_s.append(found[-1])
    return found
