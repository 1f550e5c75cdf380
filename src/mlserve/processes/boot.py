"""What a process has to know before it can begin: written by the supervisor, read once."""

import multiprocessing
import pickle
import socket
import struct
import threading
from dataclasses import dataclass
from multiprocessing import spawn
from typing import Any

from mlserve.errors import ConfigurationError
from mlserve.processes.pickling import loads_factory
from mlserve.settings import Batching, Replicas
from mlserve.spec import Factory

__all__ = [
    "IN_REPLICA",
    "Boot",
    "boot_bytes",
    "main_module",
    "prepare_main",
    "read_boot",
    "require_main",
]

IN_REPLICA = threading.Event()
"""Set in the process of a replica: it has none of the server's settings and keys, nor serves."""

_LENGTH = struct.Struct("<Q")
_GUARD = (
    "Each process of a server imports its main module, which must not start the server again:"
    " put what does below `if __name__ == '__main__':`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a process is to be."""

    name: str
    """The model's name."""
    version: str
    """Its version."""
    device: str
    """The device, as this process calls it."""
    replica: int
    """Its number."""
    n_replicas: int
    """How many there may be."""
    n_clients: int
    """How many HTTP processes there are."""
    batching: Batching
    """How requests are gathered."""
    replicas: Replicas
    """The model's options."""
    threads: int
    """How many compute threads it should use."""
    timeout_s: float
    """How long a request may take, in seconds."""
    hard_timeout_s: float | None
    """How long a call of a hook may take, in seconds."""
    stream_grace_s: float
    """How long its streams may go on when it is to end, in seconds."""
    log_levels: dict[str, int]
    """The levels of the supervisor's loggers by name; `""` is the root."""
    gc_threshold: tuple[int, int, int]
    """When the supervisor's garbage collector runs."""
    factory: bytes
    """Makes the handler."""
    main: dict[str, Any]
    """How to find the modules that the supervisor finds; see `main_module`."""

    def make_factory(self) -> Factory:
        """Import what makes the handler. Runs the user's modules; raises what they raise."""
        prepare_main(self.main)
        return loads_factory(self.factory)


def main_module(factory: bytes) -> dict[str, Any]:
    """Say how a process finds the modules that this one finds, and its main one if it needs it."""
    main: dict[str, Any] = spawn.get_preparation_data("mlserve-replica")
    if not any(name in factory for name in (b"__main__", b"__mp_main__")):
        main.pop("init_main_from_name", None)
        main.pop("init_main_from_path", None)
    for name in ("authkey", "log_to_stderr", "start_method"):
        main.pop(name, None)
    return main


def prepare_main(main: dict[str, Any]) -> None:
    """
    Find modules as the supervisor does, and run its main one if `main` names it.

    Raises:
        Exception: What that raises.
    """
    process: Any = multiprocessing.current_process()
    process._inheriting = True  # noqa: SLF001 - what `multiprocessing` itself asks in its processes
    try:
        spawn.prepare(main)
    except SystemExit as exc:
        raise ConfigurationError(f"The main module exits when it is imported. {_GUARD}") from exc
    except Exception as exc:
        if str(exc) != _GUARD and main.keys() & {"init_main_from_name", "init_main_from_path"}:
            exc.add_note(f"That was raised by the import of the main module. {_GUARD}")
        raise
    finally:
        del process._inheriting  # noqa: SLF001


def require_main() -> None:
    """
    Refuse to start a server in a process that only looks for what the server is made of.

    Raises:
        ConfigurationError: If the main module does so when it is imported.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigurationError(_GUARD)


def boot_bytes(boot: object) -> bytes:
    """Give what the supervisor sends to a process, before anything else."""
    data = pickle.dumps(boot, protocol=5)
    return _LENGTH.pack(len(data)) + data


def read_boot(sock: socket.socket) -> Any:
    """
    Receive it, as the first thing of a process.

    Raises:
        EOFError: If the supervisor has ended.
    """
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size))
    return pickle.loads(_read(sock, length))  # noqa: S301 - of the supervisor


def _read(sock: socket.socket, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            raise EOFError("The supervisor has ended.")
        data += part
    return bytes(data)
