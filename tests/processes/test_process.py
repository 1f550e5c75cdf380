"""Child processes: started, told, stopped for a moment, and gone with everything of theirs."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.http.waiting import until as until_now
from tests.processes.serving import until

from mlserve.processes.process import ChildProcess

PROGRAM = """
import os, socket, sys, time
from mlserve.processes.frames import encode
from mlserve.processes.parent import inherit

def main():
    inherited = inherit()
    {body}
"""


PARENT = """
import asyncio, os
from mlserve.processes.process import ChildProcess

async def main():
    child = ChildProcess(lambda received: None)
    await child.run("a_program", b"", [], os.environ)
    await child.exited
    await child.end()

asyncio.run(main())
"""


def run(scenario: Callable[[ChildProcess], Coroutine[Any, Any, Any]]) -> Any:
    """Play a scenario with a process that is not started yet."""

    async def play() -> Any:
        child = ChildProcess(lambda received: None)
        try:
            return await scenario(child)
        finally:
            await child.end()

    return asyncio.run(asyncio.wait_for(play(), 15.0))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Make modules that a process can be started with."""

    def write(body: str) -> str:
        (tmp_path / "a_program.py").write_text(PROGRAM.format(body=body))
        return "a_program"

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return write


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "code"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("os.abort()", -6), ("pass", 0)],
)
def test_how_a_process_has_ended_is_known(
    module: Callable[[str], str], body: str, code: int
) -> None:
    async def scenario(child: ChildProcess) -> int:
        await child.run(module(body), b"", [], os.environ)
        return await child.exited

    assert run(scenario) == code


@pytest.mark.slow
def test_a_process_runs_with_the_options_of_the_interpreter_that_starts_it(
    module: Callable[[str], str],
) -> None:
    module("print(sys.flags.optimize, sys.flags.dev_mode, 'error::UserWarning' in sys.warnoptions)")
    options = [["-O", "-X", "dev", "-W", "error::UserWarning"], []]

    printed = [
        subprocess.run(
            [sys.executable, *given, "-c", PARENT], capture_output=True, text=True, check=True
        ).stdout
        for given in options
    ]

    assert printed == ["1 True True\n", "0 False False\n"]


@pytest.mark.slow
def test_what_lies_in_the_working_directory_is_imported_by_no_process(
    module: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "random.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(folder)

    async def scenario(child: ChildProcess) -> int:
        await child.run(module("import random; random.random()"), b"", [], os.environ)
        return await child.exited

    assert run(scenario) == 0


@pytest.mark.slow
def test_a_process_that_ends_before_it_reads_is_no_error(module: Callable[[str], str]) -> None:
    async def scenario(child: ChildProcess) -> int:
        await child.run(module("sys.exit(4)"), bytes(10_000_000), [], os.environ)
        return await child.exited

    assert run(scenario) == 4


@pytest.mark.slow
def test_what_a_process_has_said_last_is_heard(module: Callable[[str], str]) -> None:
    heard: list[Any] = []
    body = """
    inherited.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for _ in range(5):
        inherited.control.sendall(encode([(34, "x" * 60_000)])[0])
    """

    async def scenario() -> None:
        child = ChildProcess(heard.extend)
        await child.run(module(body), b"", [], os.environ)
        process = child._process
        assert process is not None
        until_now(lambda: process.returncode is not None)  # nothing is read meanwhile
        await child.exited
        await child.end()

    asyncio.run(scenario())

    assert heard == [(34, "x" * 60_000)] * 5


@pytest.mark.slow
def test_a_process_that_hangs_is_killed_and_gone(module: Callable[[str], str]) -> None:
    async def scenario(child: ChildProcess) -> int:
        await child.run(module("time.sleep(300)"), b"", [], os.environ)
        assert child.is_alive
        pid = child.pid
        await child.end()
        assert not child.is_alive
        return pid

    pid = run(scenario)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_process_that_is_stopped_again_and_again_is_killed_once_it_stays_so(
    module: Callable[[str], str],
) -> None:
    async def scenario(child: ChildProcess) -> int:
        await child.run(module("time.sleep(300)"), b"", [], os.environ)
        for _ in range(3):
            child.signal(signal.SIGSTOP)
            await asyncio.sleep(0.05)
            child.signal(signal.SIGCONT)
        await asyncio.sleep(0.6)  # time is what this is about
        assert child.is_alive
        child.signal(signal.SIGSTOP)
        return await child.exited

    assert run(scenario) == -signal.SIGKILL


def test_a_program_that_cannot_be_started_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)

    async def scenario(child: ChildProcess) -> None:
        with pytest.raises(OSError, match="unavailable"):
            await child.run("a_program", b"", [], {})
        assert not child.is_alive

    run(scenario)  # an open socket would be a warning, and that an error


@pytest.mark.slow
def test_a_process_that_nobody_can_wait_for_is_ended(
    module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario(child: ChildProcess) -> None:
        name = module("time.sleep(300)")
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(OSError, match="new thread"):
                await child.run(name, b"", [], os.environ)
        assert not child.is_alive

    before = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()

    run(scenario)

    assert Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text() == before


@pytest.mark.slow
def test_processes_that_have_ended_leave_no_descriptor_or_thread(
    module: Callable[[str], str],
) -> None:
    async def scenario() -> tuple[tuple[int, int], tuple[int, int]]:
        name, counts = module("pass"), []
        for _ in range(3):
            child = ChildProcess(lambda received: None)
            await child.run(name, b"boot", [], os.environ)
            child.introduce(0).close()
            await child.end()
            await until(
                lambda: not any(re.search("wait|metrics", t.name) for t in threading.enumerate())
            )
            counts.append((n_descriptors(), threading.active_count()))
        return counts[0], counts[-1]

    first, last = asyncio.run(scenario())

    assert last == first
