"""Counting what the interpreter does: instructions and calls, by module, in all threads."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

__all__ = ["Counts", "Tally"]

_OURS = "benchmarks"

_Step = Callable[[FrameType, str, Any], Any]


class Counts(NamedTuple):
    """What was counted since the beginning, by the name of the module that the code belongs to."""

    instructions: Counter[str]
    calls: Counter[str]
    """How often a function was entered; a coroutine is entered anew whenever it goes on."""


class Tally:
    """
    Counts in the threads that begin while it does, and in the one that begins it.

    The benchmarks' own code is left out, so that clients may run in the thread of the server.
    What is written in C is not seen: it costs time, but no instruction.
    """

    def __init__(self) -> None:
        # One for each thread: adding to a number that threads share could lose some.
        self._modules: list[dict[str, _Module]] = []

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count until the block is left; what else traces the thread meanwhile is put back then."""
        here, threads = sys.gettrace(), threading.gettrace()
        threading.settrace(self._begin)
        sys.settrace(self._tracer())
        try:
            yield
        finally:
            sys.settrace(here)
            threading.settrace(threads)

    def counts(self) -> Counts:
        """Say what has been counted."""
        counts = Counts(Counter(), Counter())
        for modules in list(self._modules):
            for name, module in list(modules.items()):
                counts.instructions[name] += module.n_instructions
                counts.calls[name] += module.n_calls
        return counts

    def _begin(self, frame: FrameType, event: str, arg: Any) -> _Step | None:
        """Give a new thread a tracer of its own."""
        tracer = self._tracer()
        sys.settrace(tracer)
        return tracer(frame, event, arg)

    def _tracer(self) -> Callable[[FrameType, str, Any], _Step | None]:
        modules: dict[str, _Module] = {}
        self._modules.append(modules)

        def enter(frame: FrameType, _event: str, _arg: Any) -> _Step | None:
            # Not by file: the methods that dataclasses write for themselves have none.
            name = frame.f_globals.get("__name__", "?")
            module = modules.get(name)
            if module is None:
                if name.partition(".")[0] == _OURS:
                    return None
                module = modules[name] = _Module()
            module.n_calls += 1
            frame.f_trace_lines = False
            frame.f_trace_opcodes = True
            return module.step

        return enter


class _Module:
    """Counts the instructions of one module in one thread."""

    __slots__ = ("n_calls", "n_instructions", "step")

    def __init__(self) -> None:
        self.n_calls = self.n_instructions = 0

        def step(_frame: FrameType, event: str, _arg: Any) -> _Step:
            if event == "opcode":
                self.n_instructions += 1
            return step

        self.step: _Step = step
