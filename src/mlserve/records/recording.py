"""All sinks of a server: who of them is told of which model, and their common start and end."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mlserve.errors import ConfigurationError
from mlserve.observability.listeners import Ended, Listeners
from mlserve.records.outlet import Outlet
from mlserve.records.sink import Sink, require_sink

__all__ = ["Recorder", "Recording"]


class Recorder:
    """
    Tells sinks of the requests of one model. On the event loop; waits for nothing.

    Args:
        outlets: The ways to them.
    """

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        self._outlets = tuple(outlets)

    @property
    def keeps_payloads(self) -> bool:
        """Whether a sink wants the bodies."""
        return any(outlet.options.keep_payloads for outlet in self._outlets)

    def note(self, ended: Ended) -> None:
        """Take in a request that has its answer."""
        for outlet in self._outlets:
            outlet.put(ended)

    def __repr__(self) -> str:
        return f"<Recorder {', '.join(outlet.name for outlet in self._outlets)}>"


class Recording:
    """
    The sinks of a server, each with its queue and its task.

    Args:
        sinks: Who is told of every model.

    Raises:
        ConfigurationError: If one is no sink, or two have one name.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._outlets: dict[int, Outlet] = {}
        self._common = self._outlets_of(sinks)

    def record(self, listeners: Listeners, sinks: Sequence[Sink]) -> None:
        """
        Have sinks told of a model's requests.

        Args:
            listeners: Who is told of them.
            sinks: The sinks, besides those of every model.

        Raises:
            ConfigurationError: If one is no sink, or two have one name.
        """
        outlets = dict.fromkeys([*self._common, *self._outlets_of(sinks)])
        if outlets:
            listeners.add(Recorder(list(outlets)))

    def open(self) -> None:
        """Begin to write, on the event loop that runs now."""
        for outlet in self:
            outlet.open()

    async def close(self, timeout_s: float) -> None:
        """
        Take in no more records and write those that wait.

        Args:
            timeout_s: How long that may take, in seconds; what is not written then is dropped.
        """
        tasks = {outlet: outlet.finish() for outlet in self}
        try:
            if running := [task for task in tasks.values() if task is not None]:
                await asyncio.wait(running, timeout=timeout_s)
        finally:
            await asyncio.gather(*(outlet.abandon(task) for outlet, task in tasks.items()))

    def __iter__(self) -> Iterator[Outlet]:
        return iter(self._outlets.values())

    def _outlets_of(self, sinks: Any) -> list[Outlet]:
        if isinstance(sinks, Sink) or not isinstance(sinks, Iterable):
            raise ConfigurationError(f"`sinks` must be a list of sinks, got {sinks!r}.")
        return [self._outlet_of(require_sink(sink)) for sink in sinks]

    def _outlet_of(self, sink: Sink) -> Outlet:
        """Give the way to a sink; one that was given before keeps its queue."""
        outlet = self._outlets.get(id(sink))
        if outlet is None:
            name = sink.options.name or type(sink).__name__
            if any(other.name == name for other in self):
                raise ConfigurationError(
                    f"There is a sink named {name!r} already. Give one of them another name:"
                    " `options=SinkOptions(name=…)`."
                )
            outlet = self._outlets[id(sink)] = Outlet(sink, name)
        return outlet
