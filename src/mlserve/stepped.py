"""
The contract of models that advance all their requests together, a step at a time.

A language model that computes the next token of each request is one; so are diffusion models and
simulations. `mlserve.execution.stepper` calls the hooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlserve.handler import ChunkT, ModelHandler, RequestT, ResponseT

__all__ = ["Advance", "SteppedHandler"]


@dataclass(slots=True)
class Advance:
    """What a step has brought for one sequence."""

    sequence: Any
    """What `admit` gave for it."""
    chunks: Sequence[Any] = ()
    """What is new, in order."""
    is_finished: bool = False
    """Whether it is at its end; it is not evicted then."""
    error: Exception | None = None
    """What ends this sequence alone; it is not evicted then."""


class SteppedHandler(ModelHandler[RequestT, ResponseT, ChunkT]):
    """
    A model that runs requests together: each enters at the next step and leaves when it ends.

    Write `admit`, `step` and `evict`. They and `load` run in the replica's own thread, one at a
    time; `preprocess` and `postprocess` run beside them as in any handler. Each request can be
    streamed, and can be asked for as a whole: `postprocess` gets the list of all its chunks then.

    Example:
        >>> class Countdown(SteppedHandler[int, list[int], int]):
        ...     def load(self) -> None:
        ...         self.left = []
        ...     def admit(self, item: int) -> list[int]:
        ...         self.left.append([item])
        ...         return self.left[-1]
        ...     def step(self) -> list[Advance]:
        ...         for sequence in self.left:
        ...             sequence[0] -= 1
        ...         ended = [sequence for sequence in self.left if sequence[0] <= 0]
        ...         advances = [Advance(s, [s[0]], is_finished=s in ended) for s in self.left]
        ...         self.left = [sequence for sequence in self.left if sequence not in ended]
        ...         return advances
        ...     def evict(self, sequence: list[int]) -> None:
        ...         self.left.remove(sequence)
    """

    slots: int = 8
    """How many sequences may run at once; read after `load`, which may set it."""

    def admit(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        """
        Take in an input, and give the object that stands for it in `step` and `evict`.

        Args:
            item: What `preprocess` made.
            *args: A handler that wants it takes `call: Call`.
            **kwargs: Never given.

        Raises:
            InvalidInputError: If the model cannot take it; answered with 422 and its message.
            Exception: It fails this request only.
        """
        raise NotImplementedError

    def step(self) -> Sequence[Advance]:
        """
        Advance the sequences, and give what is new; called as long as there is one.

        A sequence that it says nothing of runs on. If it raises, the sequences have to be as they
        were before: when memory ran out the youngest one is evicted and the step called again,
        whatever else it raises ends them all.
        """
        raise NotImplementedError

    def evict(self, sequence: Any, /) -> Any:
        """Forget a sequence that has not ended: nobody waits for it any more, or memory ran out."""
        raise NotImplementedError
