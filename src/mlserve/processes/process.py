"""
A process, as its supervisor sees it: started, told, and known to be dead at once.

A thread waits for each process in the operating system, so that its end is seen within
milliseconds and no zombie is left. Everything else lives on the supervisor's event loop.
"""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mlserve.observability.exposition import forget_process_soon
from mlserve.observability.loggers import get_logger
from mlserve.processes.board import Board
from mlserve.processes.boot import Boot, boot_bytes
from mlserve.processes.wire import LAST_WORDS_S, Link, connect, send_socket

__all__ = ["ChildProcess"]

logger = get_logger(__name__)

_STOPPED_S = 0.5


class ChildProcess:
    """
    One process, from its start to its end.

    Args:
        on_messages: Takes what it says.
    """

    def __init__(self, on_messages: Callable[[list[tuple[Any, ...]]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._hung_up = asyncio.Event()
        self._link = Link(on_messages, self._hung_up.set)
        self._door, self._their_door = socket.socketpair()
        self._door.setblocking(False)  # a process that has stopped does not hold up the others
        self._process: subprocess.Popen[bytes] | None = None
        self._continued: asyncio.TimerHandle | None = None
        self.exited: asyncio.Future[int] = self._loop.create_future()
        """Its exit code, once it has ended; negative = the signal that ended it."""

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and not self.exited.done()

    async def start(self, boot: Boot, board: Board, environment: Mapping[str, str]) -> None:
        """
        Start a replica; it then loads, and says how that went.

        Raises:
            OSError: If the system gives no further process or descriptor.
        """
        fds = (board.fd,)
        await self.run("mlserve.processes.replica", boot_bytes(boot), fds, environment)

    async def run(
        self, module: str, boot: bytes, fds: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        """
        Start a program of ours.

        Args:
            module: Its module, whose `main` begins with `parent.inherit`.
            boot: What it is sent first.
            fds: What it is given besides the sockets that lead here; they stay open here.
            environment: Its environment variables.

        Raises:
            OSError: If the system gives no further process or descriptor.
        """
        ours, theirs = socket.socketpair()
        try:
            self._start(module, theirs, fds, environment)
            ours.setblocking(False)
            with suppress(ConnectionError):  # it has ended already, which the thread tells
                await self._loop.sock_sendall(ours, boot)
        except BaseException:
            ours.close()
            raise
        await connect(ours, self._link)

    def _start(
        self,
        module: str,
        control: socket.socket,
        fds: Sequence[int],
        environment: Mapping[str, str],
    ) -> None:
        fds = (control.fileno(), self._their_door.fileno(), *fds)
        with control, self._their_door:
            process = subprocess.Popen(  # noqa: S603 - our own program
                # Not with `-m`: the module would be `__main__`, also in the log.
                # With `-P`, as what lies in the working directory may be called like a library.
                [sys.executable, *_interpreter_options(), "-P", "-c"]
                + [f"from {module} import main; main()"]
                + [str(number) for number in (os.getpid(), *fds)],
                pass_fds=fds,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl+C and Ctrl+Z in a terminal mean the server
            )
        name = f"mlserve-wait-{process.pid}"
        thread = threading.Thread(target=self._wait, args=(process,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # the system gives no further thread
            process.kill()
            process.wait()
            raise OSError(errno.EAGAIN, str(exc)) from exc
        self._process = process

    def send(self, *message: Any) -> None:
        """Tell it something."""
        self._link.send(message)

    def introduce(self, index: int) -> socket.socket:
        """
        Connect it with an HTTP process.

        Returns:
            The end of the connection that is for the HTTP process.

        Raises:
            OSError: If it has ended, or there is no further descriptor.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.pass_socket(index, theirs)
            except OSError:
                ours.close()
                raise
        return ours

    def pass_socket(self, tag: int, sock: socket.socket) -> None:
        """
        Give it a socket through its door; this process may close its own.

        Raises:
            OSError: If it has ended, or takes nothing.
        """
        send_socket(self._door, tag, sock)

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.is_alive and self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        self.signal(signal.SIGKILL)

    async def end(self) -> None:
        """Kill it if it has not ended, and wait until it has."""
        self.kill()
        try:
            if self._process is not None:
                await asyncio.shield(self.exited)
            if self._link.sock is not None:
                with suppress(TimeoutError):  # what it has said last
                    await asyncio.wait_for(self._hung_up.wait(), LAST_WORDS_S)
        finally:
            self._link.close()
            self._door.close()
            self._their_door.close()

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Follow the process in the system; the body of its own thread."""
        while True:
            try:
                _, status = os.waitpid(process.pid, os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:  # somebody else has waited for it
                status = 0
            if os.WIFSTOPPED(status):
                self._post(self._note_stopped)
            elif os.WIFCONTINUED(status):
                self._post(self._note_continued)
            else:
                process.returncode = os.waitstatus_to_exitcode(status)
                # Those that it has forked hold its sockets and its memory, and nobody needs them.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                self._post(self._note_exited, process.returncode)
                return

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(function, *args)

    def _note_stopped(self) -> None:
        self._note_continued()  # which is not told if it lasted a moment only
        logger.error("process.stopped", extra={"pid": self.pid})
        self._continued = self._loop.call_later(_STOPPED_S, self.kill)

    def _note_continued(self) -> None:
        if self._continued is not None:
            self._continued.cancel()

    def _note_exited(self, code: int) -> None:
        self._note_continued()
        forget_process_soon(self.pid)
        if not self.exited.done():
            self.exited.set_result(code)

    def __repr__(self) -> str:
        state = "alive" if self.is_alive else "ended"
        return f"<ChildProcess {self.pid} {state}>"


def _interpreter_options() -> list[str]:
    """Give the options that this interpreter was started with, such as `-O`, `-W` and `-X`."""
    module: Any = subprocess
    options: list[str] = module._args_from_interpreter_flags()  # noqa: SLF001 - as `multiprocessing`
    return options
