"""Servers in processes of their own, on a core of their own: start, ready, what they take, stop."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.compare.systems import System
from benchmarks.compare.workloads import N_EVENTS, Workload, payloads

__all__ = ["ROOT", "FailedError", "Running", "all_cores", "check", "started"]

ROOT = Path(__file__).parents[2]
N_CHECKED = 40
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STOP_S = 20.0


class FailedError(Exception):
    """A server did not start, or answered wrongly; the message says why."""


@dataclass(slots=True)
class Running:
    """A server that answers."""

    pid: int
    port: int
    ready_s: float = 0.0
    """From its start to its first good answer."""

    def tree(self) -> list[int]:
        """Give its processes: the one that was started and all below it."""
        parents = {pid: fields[1] for pid, fields in _processes().items()}
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if int(parent) == pid]
        return found

    def cpu_s(self) -> float:
        """Give the CPU time that its processes have taken, in seconds."""
        processes = _processes()
        return sum(
            (int(processes[pid][11]) + int(processes[pid][12])) / _TICKS_PER_S
            for pid in self.tree()
            if pid in processes
        )

    def rss_mb(self) -> float:
        """Give the memory that its processes hold, in MB; what they share counts for each."""
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        return total / 1e6


def all_cores() -> list[int]:
    """Give those that this process had when it began."""
    return _ALLOWED


def cores() -> tuple[int, int]:
    """Give the core of the servers and that of the load."""
    found = _ALLOWED
    return found[0], found[-1]


_ALLOWED = sorted(os.sched_getaffinity(0))


@contextmanager
def started(system: System, workload: Workload, python: Path) -> Iterator[Running]:
    """
    Run a server on the first core, and wait until it answers.

    Args:
        system: What is run.
        workload: What it serves.
        python: The interpreter of its environment.

    Raises:
        FailedError: If it ends, or does not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment |= system.environment(workload, port)
    with tempfile.TemporaryFile() as log:
        server_core, load_core = cores()
        started_at = time.monotonic()
        os.sched_setaffinity(0, {server_core})  # is inherited by all that the server starts
        process = subprocess.Popen(
            system.command(python, port),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        os.sched_setaffinity(0, {load_core})
        running = Running(process.pid, port)
        try:
            _await_answer(process, port, system, workload, log)
            running.ready_s = time.monotonic() - started_at
            yield running
        finally:
            _stop(process, running)


def check(system: System, workload: Workload, running: Running) -> list[float] | None:
    """
    Ask many things at once, and see that each answer is the right one.

    Returns:
        The vector of the first text, where the workload is the encoder.

    Raises:
        FailedError: If one is not.
    """
    path = system.paths[workload.name]
    if workload.name == "sse":
        _expect(system, ask(running.port, path, system.body({"n": N_EVENTS})), range(N_EVENTS))
        return None
    if workload.name == "minilm":
        asked = list(payloads(workload)[:8])
    else:
        asked = [{"x": number + 0.5} for number in range(N_CHECKED)]
    with ThreadPoolExecutor(16) as pool:
        bodies = [system.body(payload) for payload in asked]
        answers = list(pool.map(lambda body: ask(running.port, path, body, system.headers), bodies))
    if workload.name != "minilm":
        for payload, answer in zip(asked, answers, strict=True):
            _expect(system, answer, 2 * payload["x"])  # type: ignore[operator]  # a number
        return None
    vectors = [system.read(body) for _, body in answers]
    for vector in vectors:
        if len(vector) != 384 or abs(sum(x * x for x in vector) - 1) > 1e-3:
            raise FailedError(f"answers no vector of length 1 but {str(vector)[:80]}")
    return list(vectors[0])


def ask(
    port: int,
    path: str,
    body: bytes,
    more: Sequence[tuple[str, str]] = (),
    timeout_s: float = 30.0,
) -> tuple[int, bytes]:
    """
    Give status and body of an answer, on a connection of its own.

    Args:
        port: Where.
        path: What.
        body: The body; an empty one makes it a GET.
        more: Further headers.
        timeout_s: How long it may take, in seconds.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        headers = {"Content-Type": "application/json", **dict(more)}
        connection.request("POST" if body else "GET", path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _expect(system: System, answer: tuple[int, bytes], wanted: Any) -> None:
    status, body = answer
    found = system.read(body) if status == 200 else body[:120]
    if found != (list(wanted) if isinstance(wanted, range) else wanted):
        raise FailedError(f"answers {status} {str(found)[:120]} instead of {wanted}")


def _await_answer(
    process: subprocess.Popen[bytes],
    port: int,
    system: System,
    workload: Workload,
    log: IO[bytes],
) -> None:
    body = next((system.body(payload) for payload in payloads(workload)), b"")
    until = time.monotonic() + system.start_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise FailedError(f"ended with {process.returncode}: {_last_line(log)}")
        try:
            status, _ = ask(port, system.paths[workload.name], body, system.headers, timeout_s=5.0)
        except (OSError, http.client.HTTPException):
            status = 0
        if status == 200:
            return
        time.sleep(0.01)
    raise FailedError(f"did not answer within {system.start_s:g} s: {_last_line(log)}")


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"


def _stop(process: subprocess.Popen[bytes], running: Running) -> None:
    below = running.tree()[1:]
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in below:  # what it left behind
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _processes() -> dict[int, list[str]]:
    """Give what /proc/*/stat says behind the name of each process: state, parent, …."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
                found[int(folder.name)] = stat.rpartition(")")[2].split()
    return found
