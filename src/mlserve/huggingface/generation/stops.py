"""Texts that end an answer: they are cut from it, also where they come in pieces. Pure."""

from collections.abc import Sequence

__all__ = ["StopFinder"]


class StopFinder:
    """
    Lets text through until a stop comes; what may become one is held back.

    Args:
        stops: The texts that end the answer; none of them is empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.is_stopped = False
        """Whether a stop has come: nothing is let through any more."""
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> str:
        """Take what was written, and give what is no part of a stop, now or later."""
        if self.is_stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """Give what was held back, at the end of an answer that no stop has ended."""
        held, self._held = self._held, ""
        return held

    def __repr__(self) -> str:
        return f"<StopFinder holds {self._held!r} back>"


def _overlap(text: str, stop: str) -> int:
    """Say how many characters at the end of a text are the beginning of a stop."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
