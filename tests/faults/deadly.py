"""A model whose process ends, or stops answering, when it is told to; and the ways that has."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.handler import Ask, FaultyHandler
from tests.faults.notebook import Notebook

FOREVER_S = 600
DEVOURED_BYTES = 96 * 2**20


@dataclass(frozen=True, slots=True)
class Death:
    """One way in which a process ends or stops answering."""

    name: str
    is_hang: bool = False
    """Whether it goes on for ever until somebody kills it."""
    signal: int = 0
    """What the test has to send it; 0 = the handler does it."""
    after_s: float = 0.0
    """How long after the signal the process is killed, as it has only stopped."""


DEATHS = (
    Death("segfault"),
    Death("exit"),
    Death("abort"),
    Death("out_of_memory"),
    Death("hang", is_hang=True),
    Death("hang_with_gil", is_hang=True),
    Death("killed", signal=signal.SIGKILL),
    Death("segfaulted", signal=signal.SIGSEGV),
    Death("stopped", signal=signal.SIGSTOP, after_s=0.5),
)
BY_NAME = {death.name: death for death in DEATHS}
SUDDEN = [death for death in DEATHS if not death.is_hang]


def _run_out_of_memory() -> None:
    """Do to this process what the system does to one that takes too much."""
    taken = [bytearray(os.urandom(1) * 2**20) for _ in range(32)]
    os.kill(os.getpid(), signal.SIGKILL)
    assert taken


_WAYS: dict[str, Callable[[], object]] = {
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(3),
    "abort": os.abort,
    "out_of_memory": _run_out_of_memory,
    "hang": lambda: threading.Event().wait(FOREVER_S),
    "hang_with_gil": lambda: ctypes.PyDLL(None).sleep(FOREVER_S),
}


class Deadly(FaultyHandler):
    """
    Ends its process as the requests' faults say, and as is noted of its processes.

    The fault `infer:wait` waits until the id of the request is noted, `infer:devour` takes much
    memory for a moment. The lines of `fates` say, in
    turn, what each process suffers while it begins: `load:segfault`, `warmup:exit`, or nothing. If
    the test has to do it, `waits` tells it which process it is time for.
    """

    notes: Notebook

    def load(self) -> None:
        number = len(self.notes.read("begun"))
        self.notes.note("begun", str(os.getpid()))
        [fate] = self.notes.read("fates")[number : number + 1] or [""]
        self.stage, _, self.what = fate.partition(":")
        self._meet_fate("load")
        self.notes.note("loaded", f"{os.getpid()} {age_s():.3f}")

    def warmup(self) -> None:
        self._meet_fate("warmup")

    def _meet_fate(self, stage: str) -> None:
        if self.stage != stage:
            return
        if self.what in _WAYS:
            self._die(self.what)
        self.notes.note("waits", str(os.getpid()))
        threading.Event().wait(FOREVER_S)

    def _suffer(self, item: Ask, stage: str) -> None:
        if item.stage == stage and item.what == "wait":
            [name, *_] = item.text.split(".")
            self.notes.note("waits", str(os.getpid()))
            self.notes.wait_for(name)
        elif item.stage == stage and item.what == "devour":
            assert len(b"x" * DEVOURED_BYTES) == DEVOURED_BYTES
        elif item.stage == stage and item.what in _WAYS:
            time.sleep(item.hold_s)  # until what was sent before is on its way
            self._die(item.what)
        else:
            super()._suffer(item, stage)

    def _die(self, what: str) -> None:
        self.notes.note("died", f"{os.getpid()} {time.monotonic():.3f}")
        _WAYS[what]()


class Careful(Deadly):
    """May not be run again."""

    idempotent = False


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """
    Make a control group whose processes are killed when they take more memory together.

    Gives the file that takes their numbers.

    Raises:
        OSError: If this process may not make one here.
    """
    root = Path("/sys/fs/cgroup")
    parent, limit = root / "memory", "memory.limit_in_bytes"  # version 1
    if not parent.is_dir():
        parent, limit = root, "memory.max"
    group = parent / f"mlserve-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(limit_bytes))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def age_s() -> float:
    """Say how long ago this process was started, in seconds."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(stat[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
