"""Handlers that have something to say when they are loaded, or cannot be."""

import logging
import os
import threading
from pathlib import Path

from tests.processes.handlers import break_down

from mlserve import ModelHandler


class OddLoadError(Exception):
    """Cannot be made anew from its message alone."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}, line {line}")


class Unloadable(ModelHandler[str, str]):
    """
    Raises when it is loaded, and counts how often it was.

    Args:
        notes: A file to which each load adds a line.
        way: What it raises.
    """

    def __init__(self, notes: Path, way: str) -> None:
        self._notes = notes
        self._way = way

    def load(self) -> None:
        with self._notes.open("a") as file:
            file.write("load\n")
        if self._way == "key":
            raise KeyError("weights")
        if self._way == "odd":
            raise OddLoadError("model.bin", 7)
        if self._way == "exit":
            os._exit(5)
        if self._way == "hang":
            break_down("hang")

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


class Talking(ModelHandler[str, str]):
    """Reports and logs."""

    def load(self) -> None:
        self.context.progress(0.25, "a quarter")
        logging.getLogger("tests.talking").info("Loaded on %s.", self.context.device)
        self.context.progress(0.75, "three quarters")

    def infer(self, inputs: list[str]) -> list[str]:
        log = logging.getLogger("tests.talking")
        log.debug("Nobody wants to know.")
        log.warning("Seen %s.", inputs, extra={"n_inputs": len(inputs)})
        log.warning("With %s.", "a lock", extra={"lock": threading.Lock()})
        try:
            raise ValueError("Only noted.")
        except ValueError:
            log.exception("It went wrong.")
        return inputs


class Fragile(ModelHandler[str, str]):
    """Ends its process when it is loaded while a file is there."""

    def __init__(self, broken: Path) -> None:
        self._broken = broken

    def load(self) -> None:
        if self._broken.exists():
            os._exit(4)

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs
