"""Making the lanes of a model where its options place the replicas: in threads of this process."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from mlserve.contract import Contract, read_contract
from mlserve.errors import ConfigurationError
from mlserve.execution.devices import device_of
from mlserve.execution.pipeline import Pipeline
from mlserve.execution.pool import ReplicaPool
from mlserve.execution.thread import OnReport, ThreadReplica
from mlserve.execution.worker import Mailbox
from mlserve.handler import Context
from mlserve.lane import Lane
from mlserve.spec import Factory, ModelSpec

__all__ = ["ThreadPlacement", "contract_of"]


class ThreadPlacement:
    """
    Makes lanes of thread replicas that answer on one event loop.

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
        self._spec = spec
        self._on_change = on_change
        self._clock = clock
        self._mailbox: Mailbox | None = None

    def attach(self) -> None:
        """Answer on the running event loop from now on."""
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self.progress.clear()

    def catch_up(self) -> None:
        """Take what the threads have finished, before its turn of the event loop comes."""
        if self._mailbox is not None:
            self._mailbox.catch_up()

    def open_lane(self, factory: Factory | None = None) -> Lane:
        """
        Make a lane; nothing is loaded yet.

        Args:
            factory: Gives other handlers than those that were added.

        Raises:
            ConfigurationError: If they have other request or response types.
        """
        spec = self._spec
        contract = spec.contract if factory is None else contract_of(factory, spec)
        pipeline = Pipeline(contract, spec.name, self._clock)
        make_handler = factory or spec.factory

        def make(number: int, on_report: OnReport) -> ThreadReplica:
            mailbox = self._mailbox or Mailbox(asyncio.get_running_loop())
            context = self._context(number)
            return ThreadReplica(make_handler(), pipeline, context, mailbox, on_report)

        pool = ReplicaPool(make, spec.replicas, spec.batching, self._on_change)
        return Lane(replace(spec, contract=contract), pool, self._clock)

    def _context(self, number: int) -> Context:
        def report(fraction: float, note: str) -> None:
            if self._mailbox is not None:
                self._mailbox.post(self.progress.__setitem__, number, (fraction, note))

        return Context(
            name=self._spec.name,
            version=self._spec.version,
            device=device_of(number, self._spec.replicas),
            replica=number,
            threads=self._spec.replicas.threads_per_replica,
            batching=self._spec.batching,
            report=report,
        )


def contract_of(factory: Factory, spec: ModelSpec) -> Contract:
    """
    Read what a reload's factory makes.

    Raises:
        ConfigurationError: If it has other request or response types than the model.
    """
    contract, old = read_contract(type(factory())), spec.contract
    types = (contract.request_type, contract.response.declared, contract.chunk.declared)
    if types != (old.request_type, old.response.declared, old.chunk.declared):
        raise ConfigurationError(
            f"The new handler of model `{spec.name}` has other request or response types. Add it"
            " as another version."
        )
    return contract
