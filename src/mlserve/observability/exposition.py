"""
What `/metrics` shows: the families of this process, and of all others that serve the same models.

Other processes write theirs to files in one directory, as the multiprocess mode of
`prometheus_client` has it. A process that is started gets the directory in its environment; one
that was not counts in its own memory, and what it has is added when it is asked.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from mlserve.observability.gathering import is_sharing, write_gathered
from mlserve.observability.loggers import get_logger

__all__ = [
    "VARIABLE",
    "exposed",
    "forget_process",
    "forget_process_soon",
    "merged",
    "shared_directory",
]

logger = get_logger(__name__)

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the directory."""

_ADDED_UP = ("counter", "histogram", "summary")
_OF_ONE_PROCESS = ("gauge_all", "gauge_live*")
_ENDED = "ended"
_CREATED = "_created"
_made: list[str] = []


def shared_directory() -> str:
    """Give the directory for the processes that this one starts; the first call makes it."""
    if given := os.environ.get(VARIABLE):
        return given
    if not _made:
        _made.append(tempfile.mkdtemp(prefix="mlserve-metrics-"))
        atexit.register(_remove, _made[0], os.getpid())
    return _made[0]


def forget_process(pid: int) -> None:
    """
    Drop the gauges of a process that has ended, and keep what it has counted.

    What all that have ended counted stands in one file of each kind, however many they were.
    """
    directory = _directory()
    if directory is None:
        return
    try:
        with _locked(directory, fcntl.LOCK_EX):
            for kind in _OF_ONE_PROCESS:
                for path in directory.glob(f"{kind}_{pid}.db"):
                    path.unlink()
            for kind in _ADDED_UP:
                _move(directory / f"{kind}_{pid}.db", directory / f"{kind}_{_ENDED}.db")
    except FileNotFoundError:  # the server ends, and has removed the directory
        return
    except Exception:  # a full disk, or a file that was cut: what is served matters more
        logger.exception("metrics.forget.failed")


def forget_process_soon(pid: int) -> None:
    """Do so in a thread of its own: whoever is being asked for metrics may stand still."""
    if _directory() is not None:
        with suppress(RuntimeError):  # the system gives no further thread
            threading.Thread(
                target=forget_process, args=(pid,), name="mlserve-metrics", daemon=True
            ).start()


def exposed(accept: str) -> tuple[bytes, str]:
    """
    Write all families in the format that a scraper asks for. Any thread.

    Args:
        accept: The `Accept` header.

    Returns:
        The body and its content type.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Families()), content_type


def merged(own: Iterable[Metric], others: Iterable[Metric]) -> list[Metric]:
    """
    Add up two sets of families: samples of one name and the same labels become their sum. Pure.

    When something was first counted (`…_created`) is left out: it doubles the number of series,
    and says nothing of several processes together.

    Args:
        own: What this process has counted.
        others: What the other ones have.
    """
    families: dict[str, Metric] = {}
    places: dict[tuple[str, str, frozenset[tuple[str, str]]], int] = {}
    for family in (*own, *others):
        total = families.get(family.name)
        if total is None:
            total = Metric(family.name, family.documentation, family.type, family.unit)
            families[family.name] = total
        for sample in family.samples:
            if sample.name == family.name + _CREATED:
                continue
            key = family.name, sample.name, frozenset(sample.labels.items())
            at = places.setdefault(key, len(total.samples))
            if at == len(total.samples):
                total.samples.append(sample)
            else:
                before = total.samples[at]
                total.samples[at] = before._replace(value=before.value + sample.value)
    return list(families.values())


class _Families:
    """What `prometheus_client` takes for a registry."""

    def collect(self) -> Iterator[Metric]:
        own: Iterable[Metric] = []
        if is_sharing():
            write_gathered()
        else:
            own = REGISTRY.collect()
        directory, others = _directory(), list[Metric]()
        if directory is not None:
            collector = MultiProcessCollector(None, str(directory))  # type: ignore[no-untyped-call]
            with _locked(directory, fcntl.LOCK_SH):
                others = list(collector.collect())  # type: ignore[no-untyped-call]
        yield from merged(own, others)


def _directory() -> Path | None:
    name = os.environ.get(VARIABLE) or next(iter(_made), None)
    return Path(name) if name is not None and os.path.isdir(name) else None


@contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    """Keep others from seeing a count twice, or not at all, while it is moved."""
    with open(directory / "lock", "ab") as file:
        fcntl.flock(file, how)  # given back when the file is closed
        yield


def _move(source: Path, target: Path) -> None:
    """Add the values of one file to those of another one, and delete it."""
    if not source.exists():
        return
    total: Any = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
            total.write_value(key, total.read_value(key)[0] + value, 0.0)
    finally:
        total.close()
    source.unlink()


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork of who has made it
        shutil.rmtree(directory, ignore_errors=True)
