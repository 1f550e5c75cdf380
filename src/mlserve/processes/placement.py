"""Making the lanes of a model whose replicas are in processes of their own."""

import time
from collections.abc import Callable

from mlserve.placement import contract_of
from mlserve.processes.fleet import Fleet
from mlserve.processes.lane import RemoteFleet, RemoteLane
from mlserve.spec import Factory, ModelSpec

__all__ = ["ProcessPlacement"]

OpenFleet = Callable[[ModelSpec, Factory | None], RemoteFleet]
"""Gives the replicas of a model, made by its own factory or another one; none is started yet."""


class ProcessPlacement:
    """
    Makes lanes to replicas in other processes.

    Args:
        spec: The model.
        on_change: Called on the event loop when a replica is lost or comes back.
        clock: Gives monotonic seconds.
    """

    def __init__(
        self,
        spec: ModelSpec,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress: dict[int, tuple[float, str]] = {}
        """How far each replica has come in `load`: fraction and note."""
        self.open_fleet: OpenFleet = Fleet
        """Where the processes come from; they are started by this one unless others share them."""
        self.index = 0
        """The number of this process among those that share them."""
        self._spec = spec
        self._on_change = on_change
        self._clock = clock

    def attach(self) -> None:
        """Answer on the running event loop from now on."""
        self.progress.clear()

    def catch_up(self) -> None:
        """Take what was finished; the system brings it by itself."""

    def open_lane(self, factory: Factory | None = None) -> RemoteLane:
        """
        Make a lane; nothing is loaded yet.

        Args:
            factory: Gives other handlers than those that were added.

        Raises:
            ConfigurationError: If they have other request or response types, or cannot be made
                in another process.
        """
        if factory is not None:
            contract_of(factory, self._spec)
        return RemoteLane(
            self._spec,
            self.open_fleet(self._spec, factory),
            self.index,
            self._on_change,
            self._note_progress,
            self._clock,
        )

    def _note_progress(self, number: int, fraction: float, note: str) -> None:
        self.progress[number] = (fraction, note)
