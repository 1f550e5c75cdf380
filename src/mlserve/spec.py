"""A model as it was added: what it is called, what it is and what it may use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlserve.contract import Contract
from mlserve.handler import ModelHandler
from mlserve.settings import Batching, Limits, Replicas

__all__ = ["Factory", "ModelSpec"]

Factory = Callable[[], ModelHandler[Any, Any, Any]]
"""Gives a handler for one replica; its `load` has not been called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model as it was added."""

    name: str
    """What it is called in paths."""
    version: str
    """Its version, such as `v1`."""
    contract: Contract
    """What its handler class is."""
    factory: Factory
    """Gives the handler of each replica."""
    example: ModelHandler[Any, Any, Any]
    """A handler that is not loaded, to ask for its `examples`; or the one that was added."""
    batching: Batching
    """How its requests are gathered."""
    replicas: Replicas
    """How many copies run, and where."""
    limits: Limits
    """What its requests may take."""

    @property
    def is_instance(self) -> bool:
        """Whether a handler itself was added, which is then used as it is."""
        return self.factory() is self.example
