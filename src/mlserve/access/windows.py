"""
Sliding windows: how much was taken in the last period, and whether more may be. Pure.

The period is cut into 60 parts, and what was taken is counted by the part that it fell into. A
part counts in full until all of it lies outside the period. So no interval as long as the period,
wherever it begins, ever has more than the limit (a counter of fixed windows lets through twice as
much around their borders, and one that weighs the last window by its share assumes that it was
even), and what was taken comes back at most a sixtieth of the period late.

Source:
    Zhu & Shasha 2002, StatStream, VLDB: basic windows.
"""

import math
import re
from dataclasses import dataclass

from mlserve.errors import ConfigurationError

__all__ = ["N_PARTS", "Rate", "Reading", "Window"]

N_PARTS = 60
"""Into how many parts a period is cut."""

_RATE = re.compile(r"([0-9]{1,15})/([0-9]{1,6})? ?(second|minute|hour|day)s?")
_UNITS_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_LONGEST_S = 366 * 86_400


@dataclass(frozen=True, slots=True)
class Rate:
    """
    How much may be taken in which time.

    Raises:
        ConfigurationError: If a value is out of range, on creation.
    """

    limit: int
    """The most that may be taken in each period."""
    period_s: int
    """The period in seconds."""

    def __post_init__(self) -> None:
        if self.limit < 1 or not 1 <= self.period_s <= _LONGEST_S:
            raise ConfigurationError(
                "A rate must allow at least 1 in a period of 1 second to 366 days,"
                f" got {self.limit!r} in {self.period_s!r} s."
            )

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """
        Read what is written as `100/minute` or `5/10 seconds`.

        Raises:
            ConfigurationError: If it is written otherwise.
        """
        match = _RATE.fullmatch(str(text))
        if match is None:
            raise ConfigurationError(
                f"A rate must look like '100/minute' or '5/10 seconds', got {text!r}."
                " Units are second, minute, hour and day."
            )
        return cls(int(match[1]), int(match[2] or 1) * _UNITS_S[match[3]])


@dataclass(frozen=True, slots=True)
class Reading:
    """What a window says to one request."""

    is_admitted: bool
    """Whether there was room."""
    remaining: int
    """How much more may be taken now; less than 0 if more was charged than there was."""
    retry_after_s: float
    """After how many seconds there is room for it, if nobody else takes it; `inf` = never."""
    reset_s: float
    """After how many seconds all of the limit is there again."""


class Window:
    """What one caller has taken in the last period. Not safe for threads."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        # The number of each part that is not empty, and what was taken in it, oldest first.
        self._parts: list[tuple[int, int]] = []

    def take(self, rate: Rate, now_s: float, *, needs: int, cost: int) -> Reading:
        """
        Take something if there is room.

        Args:
            rate: How much may be taken; the same in each call.
            now_s: The time in seconds; one that is before the last one counts as that one.
            needs: How much room there must be; 0 = take it in any case.
            cost: How much is taken then.
        """
        part_s = rate.period_s / N_PARTS
        number = int(now_s // part_s)
        if self._parts:
            number = max(number, self._parts[-1][0])
            self._parts = [part for part in self._parts if part[0] >= number - N_PARTS]
        used = sum(taken for _, taken in self._parts)
        is_admitted = needs == 0 or used + needs <= rate.limit
        if is_admitted and cost:
            self._add(number, cost)
            used += cost
        wait_s = 0.0 if is_admitted else self._wait_s(rate, now_s, used + needs - rate.limit)
        return Reading(
            is_admitted,
            rate.limit - used,
            wait_s,
            self._end_s(self._parts[-1][0], rate) - now_s if self._parts else 0.0,
        )

    def _add(self, number: int, cost: int) -> None:
        if self._parts and self._parts[-1][0] == number:
            cost += self._parts.pop()[1]
        self._parts.append((number, cost))

    def _wait_s(self, rate: Rate, now_s: float, too_much: int) -> float:
        """Say when as much as is too much now will lie outside the period."""
        for number, taken in self._parts:
            too_much -= taken
            if too_much <= 0:
                return self._end_s(number, rate) - now_s
        return math.inf

    @staticmethod
    def _end_s(number: int, rate: Rate) -> float:
        """Say when a part lies outside the period."""
        return (number + N_PARTS + 1) * rate.period_s / N_PARTS

    def __repr__(self) -> str:
        return f"<Window {self._parts}>"
