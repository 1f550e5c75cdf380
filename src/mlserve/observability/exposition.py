"""
What `/metrics` shows: the families of this process, and of all others that serve the same models.

Other processes write theirs to files in one directory, as the multiprocess mode of
`prometheus_client` has it. A process that is started gets the directory in its environment; one
that was not counts in its own memory, and what it has is added when it is asked.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from prometheus_client import REGISTRY, Metric, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["VARIABLE", "exposed", "forget_process", "merged", "shared_directory"]

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the directory."""

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
    """Drop the gauges of a process that has ended; what it has counted stays."""
    directory = os.environ.get(VARIABLE) or next(iter(_made), None)
    if directory is not None:
        with suppress(OSError):
            mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]


def exposed(accept: str) -> tuple[bytes, str]:
    """
    Write all families in the format that a scraper asks for.

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

    Args:
        own: What this process has counted.
        others: What the other ones have.
    """
    by_name = {family.name: family for family in own}
    for family in others:
        mine = by_name.get(family.name)
        if mine is None:
            by_name[family.name] = family
            continue
        places = {_key(sample): at for at, sample in enumerate(mine.samples)}
        for sample in family.samples:
            at = places.get(_key(sample))
            if at is None:
                mine.samples.append(sample)
            else:
                sum_of_both = mine.samples[at].value + sample.value
                mine.samples[at] = mine.samples[at]._replace(value=sum_of_both)
    return list(by_name.values())


class _Families:
    """What `prometheus_client` takes for a registry."""

    def collect(self) -> Iterator[Metric]:
        directory = os.environ.get(VARIABLE) or next(iter(_made), None)
        # Whether it counts in files is settled when `prometheus_client` is imported.
        is_sharing = values.ValueClass._multiprocess  # noqa: SLF001
        own = [] if is_sharing else list(REGISTRY.collect())
        others: list[Metric] = []
        if directory is not None and os.path.isdir(directory):
            collector = MultiProcessCollector(None, directory)  # type: ignore[no-untyped-call]
            others = list(collector.collect())  # type: ignore[no-untyped-call]
        yield from merged(own, others)


def _key(sample: Any) -> tuple[str, frozenset[tuple[str, str]]]:
    return sample.name, frozenset(sample.labels.items())


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork of who has made it
        shutil.rmtree(directory, ignore_errors=True)
