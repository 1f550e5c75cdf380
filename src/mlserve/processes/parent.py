"""What a process has of the one that started it: sockets, memory, and its own end."""

import ctypes
import os
import signal
import socket
import sys
from dataclasses import dataclass

__all__ = ["Inheritance", "end_at_once", "inherit"]

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What the supervisor has left open for this process; programs that it starts get nothing."""

    control: socket.socket
    """The supervisor's messages."""
    door: socket.socket
    """Carries further sockets."""
    fds: tuple[int, ...]
    """What else its program is given."""


def inherit() -> Inheritance:
    """
    Take what the supervisor has left, and end with it from now on; the first call of a program.

    Its arguments are the supervisor's process number and the descriptors.
    """
    parent, control_fd, door_fd, *fds = map(int, sys.argv[1:])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        end_at_once()
    for fd in (control_fd, door_fd, *fds):
        os.set_inheritable(fd, False)
    control, door = socket.socket(fileno=control_fd), socket.socket(fileno=door_fd)
    return Inheritance(control, door, tuple(fds))


def end_at_once() -> None:
    """End as the supervisor has ended: nobody else would end this process."""
    os._exit(1)
