"""
The states of a model and which may follow which. Pure: no clock, no thread, no asyncio.

    unloaded → loading → warming → ready → draining → stopped
                   ↘        ↘       ↓ ↑
                    failed ←─┴──────┤ └─ failed, restarting (a replica came back)
                    failed ←─ restarting
"""

from enum import StrEnum

from mlserve.errors import CapacityError, DrainingError, ModelFailedError, ModelNotReadyError

__all__ = ["UNLOAD_S", "Lifecycle", "ModelState"]

UNLOAD_S = 5.0
"""How long `unload` may take, in seconds, once no other hook runs."""


class ModelState(StrEnum):
    """Where a model is in its life."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    RESTARTING = "restarting"
    """No replica serves, but one is being brought back: requests wait for it."""
    FAILED = "failed"
    DRAINING = "draining"
    STOPPED = "stopped"


_MOVES: dict[ModelState, frozenset[ModelState]] = {
    ModelState.UNLOADED: frozenset({ModelState.LOADING, ModelState.STOPPED}),
    ModelState.LOADING: frozenset({ModelState.WARMING, ModelState.FAILED, ModelState.DRAINING}),
    ModelState.WARMING: frozenset({ModelState.READY, ModelState.FAILED, ModelState.DRAINING}),
    ModelState.READY: frozenset({ModelState.RESTARTING, ModelState.FAILED, ModelState.DRAINING}),
    ModelState.RESTARTING: frozenset({ModelState.READY, ModelState.FAILED, ModelState.DRAINING}),
    ModelState.FAILED: frozenset({ModelState.READY, ModelState.LOADING, ModelState.DRAINING}),
    ModelState.DRAINING: frozenset({ModelState.STOPPED}),
    ModelState.STOPPED: frozenset({ModelState.LOADING}),
}
# Looked up once: a member of an enumeration takes a call each time.
_READY = ModelState.READY
_ADMITTING = (ModelState.READY, ModelState.RESTARTING)


class Lifecycle:
    """
    One model's state, with the reason for it. Only legal moves are possible.

    Example:
        >>> life = Lifecycle()
        >>> life.move(ModelState.LOADING)
        >>> life
        <Lifecycle loading>
    """

    def __init__(self) -> None:
        self.state = ModelState.UNLOADED
        self.reason: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the model answers requests."""
        return self.state is _READY

    @property
    def admits(self) -> bool:
        """Whether requests are taken, be it that they have to wait for a replica."""
        return self.state in _ADMITTING

    def refusal(self, model: str) -> CapacityError | None:
        """Say why requests for a model in this state are refused; `None` = they are not."""
        if self.state in _ADMITTING:
            return None
        if self.state in (ModelState.DRAINING, ModelState.STOPPED):
            return DrainingError(model)
        if self.state is ModelState.FAILED:
            return ModelFailedError(model, self.reason or "it broke down")
        return ModelNotReadyError(model, self.state)

    def can_move(self, state: ModelState) -> bool:
        """Whether the model may get into `state` from where it is."""
        return state in _MOVES[self.state]

    def move(self, state: ModelState, reason: str | None = None) -> None:
        """
        Get into another state.

        Raises:
            ValueError: If that state cannot follow the present one.
        """
        if not self.can_move(state):
            raise ValueError(f"A model that is {self.state} cannot become {state}.")
        self.state = state
        self.reason = reason

    def __repr__(self) -> str:
        return f"<Lifecycle {self.state}{f': {self.reason}' if self.reason else ''}>"
