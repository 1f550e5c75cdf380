"""Stopping a server under load, and counting what became of the requests."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from tests.faults.client import GIVE_UP_S, Record, judge, read_answer
from tests.faults.processes import ServedProcess
from tests.faults.table import Mode, new_plan

N_CLIENTS = 16
BUSY: Sequence[dict[str, Any]] = (
    {},
    {"padding": 10_000, "chunks": 20},
    {"fault": "infer:hold", "hold_s": 0.05},
)


async def stop_under_load(
    served: ServedProcess, mode: Mode, dice: random.Random, stop_after_s: float
) -> list[Record]:
    """
    Send SIGTERM while clients send one request after another, until each is told to go away.

    Every connection was made before the signal, so that every request on it is owed an answer.
    """
    records: list[Record] = []
    async with asyncio.timeout(GIVE_UP_S), asyncio.TaskGroup() as group:
        for number in range(N_CLIENTS):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            group.create_task(_ask_on(reader, writer, records, mode, dice, f"client-{number}"))
        await asyncio.sleep(stop_after_s)
        served.process.terminate()
    return records


async def _ask_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    records: list[Record],
    mode: Mode,
    dice: random.Random,
    name: str,
) -> None:
    """Ask on one connection until the server says that it closes it."""
    is_open = True
    while is_open:
        headers = {"Connection": "keep-alive"}
        plan = new_plan(mode, name, dice, dict(dice.choice(BUSY)), headers=headers)
        record = Record(plan=plan)
        records.append(record)
        received = b""
        try:
            writer.write(plan.wire)
            await writer.drain()
            record.was_sent = True
            received = await read_answer(reader)
        except (OSError, asyncio.IncompleteReadError) as exc:
            record.problem = f"the connection broke: {exc!r}"
        judge(record, received)
        answer = record.answers[0] if record.answers else None
        is_open = answer is not None and answer.headers.get("connection") != "close"
    writer.close()
