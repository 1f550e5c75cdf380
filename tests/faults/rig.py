"""Playing faulty requests among healthy ones, and what must hold whatever the fault."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults.client import Plan, Record, play
from tests.faults.handler import N_CHUNKS
from tests.faults.table import Mode, Outcome, new_plan
from tests.http.waiting import until

from mlserve import ModelServer

N_HEALTHY = 10
N_FAULTY = 4
RECOVERY_S = 5.0


@dataclass(slots=True)
class Tally:
    """What all tests together have sent, and what became of it."""

    seed: int = 0
    sent: int = 0
    """Requests of any kind that were begun."""
    accepted: int = 0
    """Of these, sent completely by clients that waited."""
    lost: int = 0
    """Of these, without exactly one well-formed answer."""
    crossed: int = 0
    """Answers with another request's id or content."""
    faults: int = 0
    """Requests that had, or whose client had, a fault."""
    cells: int = 0
    """Tests that injected faults into a server."""
    survived: int = 0
    """Of these, after which a healthy request was answered within 5 s."""
    slowest_recovery_s: float = 0.0
    tokens_after_leaving: int = 0
    """The most that a stream computed after its client had left."""
    slowest_stop_s: float = 0.0
    """How long it took at most until such a stream's generator was closed."""

    def note(self, records: Sequence[Record]) -> None:
        self.sent += len(records)
        self.accepted += sum(record.is_accepted for record in records)
        self.lost += sum(record.is_lost for record in records)
        self.crossed += sum(not record.is_own for record in records)
        self.faults += sum(record.plan.is_faulty for record in records)


class Rig:
    """
    Sends requests to a running server and checks what is true of every one of them.

    Args:
        dice: Decides contents, order and times.
        tally: Counts.
    """

    def __init__(self, dice: random.Random, tally: Tally) -> None:
        self.dice = dice
        self._tally = tally

    def healthy(self, mode: Mode, n: int = N_HEALTHY, **plan: Any) -> list[Plan]:
        return [new_plan(mode, f"healthy-{number}", self.dice, **plan) for number in range(n)]

    def play(self, port: int, plans: Sequence[Plan]) -> list[Record]:
        """Send requests side by side: none may be lost or get what belongs to another."""
        records = asyncio.run(play(port, plans))
        self.note(records)
        return records

    def note(self, records: Sequence[Record], n_faults: int = 0) -> None:
        """Count requests, and check that none was lost or got what belongs to another."""
        self._tally.note(records)
        self._tally.faults += n_faults
        require_none("lost", [record for record in records if record.is_lost])
        require_none("crossed", [record for record in records if not record.is_own])

    def opener(self, mode: Mode) -> Plan:
        """Make a healthy request that keeps the model busy while the others gather behind it."""
        payload = {"fault": "infer:hold", "hold_s": 0.04}
        return new_plan(mode, "opener", self.dice, payload, at_s=0.0)

    def play_fault(
        self, port: int, mode: Mode, faulty: Sequence[Plan], expected: Outcome, *others: Plan
    ) -> list[Record]:
        """Send faulty requests among healthy ones: each is answered as it should be."""
        plans = [*self.healthy(mode), *faulty, *others]
        self.dice.shuffle(plans)
        records = self.play(port, plans)
        require_healthy([record for record in records if not record.plan.is_faulty], mode)
        require(expected, [record for record in records if record.plan.is_faulty])
        return records

    def require_recovered(self, port: int, mode: Mode, server: ModelServer) -> None:
        """Check that the next healthy request is answered and that nothing is left behind."""
        self._tally.cells += 1
        [record] = self.play(port, self.healthy(mode, 1, at_s=0.0))
        require_healthy([record], mode)
        assert record.latency_s < RECOVERY_S
        self._tally.survived += 1
        slowest_s = max(self._tally.slowest_recovery_s, record.latency_s)
        self._tally.slowest_recovery_s = slowest_s
        model = server.model_for(mode.name)
        until(lambda: model.statistics().in_flight == 0, RECOVERY_S)
        until(lambda: model.statistics().queued == 0, RECOVERY_S)


def require_none(what: str, records: Sequence[Record]) -> None:
    assert not records, f"{what}: " + ", ".join(map(str, records))


def require_healthy(records: Sequence[Record], mode: Mode) -> None:
    """Check that no healthy request had to pay for another one's fault."""
    n_chunks = N_CHUNKS if mode.is_stream else 0
    expected = Outcome(200, None, n_chunks)
    require_none(
        "healthy, but failed",
        [r for r in records if not expected.allows(r.status, r.code, r.n_chunks)],
    )


def require(expected: Outcome, records: Sequence[Record]) -> None:
    """Check that faulty requests were answered as they should be."""
    others = [r for r in records if not expected.allows(r.status, r.code, r.n_chunks)]
    require_none(f"not {expected}", others)
