"""A keeper whose processes are none: they live and die by a script, on a clock."""

import asyncio
from collections.abc import Callable
from typing import Any

from mlserve import Restart
from mlserve.processes import messages
from mlserve.processes.board import Board, Mark
from mlserve.processes.frames import pack
from mlserve.processes.keeper import Keeper, ReplicaState
from mlserve.testing import FakeClock

RESTART = Restart(failures=4, backoff_s=1.0, max_backoff_s=30.0)
LOAD_S = 2.0


class FakeProcess:
    """What a keeper sees of a process; its owner ends it."""

    def __init__(self, on_messages: Callable[[list[tuple[Any, ...]]], None]) -> None:
        self._on_messages = on_messages
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.told: list[tuple[Any, ...]] = []
        self.pid = 1

    @property
    def is_alive(self) -> bool:
        return not self.exited.done()

    def say(self, *message: Any) -> None:
        self._on_messages([message])

    def send(self, *message: Any) -> None:
        self.told.append(message)

    def exit(self, code: int = -9) -> None:
        if not self.exited.done():
            self.exited.set_result(code)

    def kill(self) -> None:
        self.exit(-9)

    async def end(self) -> None:
        self.kill()


class Lives:
    """
    A keeper's owner, by whose script each process lives and dies.

    Args:
        clock: The test's.
        script: What each process does in turn; after the last one, all live for ever.
        is_idempotent: Whether requests may be run twice.
    """

    def __init__(self, clock: FakeClock, script: list[str], *, is_idempotent: bool = True) -> None:
        self.board = Board.create(1, 1)
        self.keeper = Keeper(
            0, self, self.board, RESTART, "m", is_idempotent=is_idempotent, clock=clock
        )
        self.started_at: list[float] = []
        self.processes: list[FakeProcess] = []
        self.states: list[ReplicaState] = []
        self._clock = clock
        self._script = list(script)
        self._tasks: list[asyncio.Task[None]] = []

    async def launch(self, number: int, process: Any) -> None:
        self.started_at.append(self._clock())
        self.processes.append(process)
        deed = self._script.pop(0) if self._script else "live"
        self._tasks.append(asyncio.get_running_loop().create_task(self._play(deed, process)))

    async def _play(self, deed: str, process: FakeProcess) -> None:
        await asyncio.sleep(LOAD_S if deed != "hang" else 1e6)
        if deed == "raise":
            process.say(messages.FAILED, pack(KeyError("weights")), "Traceback …")
            await asyncio.sleep(0.1)
        if deed in ("raise", "die while loading"):
            process.exit(3)
            return
        process.say(messages.READY, 1)
        await asyncio.sleep(1.0)
        marks = self.board.marks(0, 0)
        marks[:] = bytes(len(marks))
        if deed.startswith("answer"):
            self.board.replicas[0].answered += 1
        for slot in range({"one": 1, "many": 3}.get(deed.split()[-1], 0)):
            marks[slot] = Mark.INFER
        if deed != "live":
            process.exit()

    def note_state(self, keeper: Keeper) -> None:
        self.states.append(keeper.state)

    def note_progress(self, number: int, fraction: float, note: str) -> None:
        """No test looks."""

    def note_warming(self) -> None:
        """No test looks."""

    def pauses_s(self) -> list[float]:
        """Say how long nothing was started after each end."""
        return [
            round(after - before, 3)
            for before, after in zip(self.started_at, self.started_at[1:], strict=False)
        ]
