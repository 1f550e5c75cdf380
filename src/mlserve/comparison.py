"""
Comparing two JSON values: where they differ, by what tolerance. Pure.

For answers of two versions of a model, whose numbers may differ in their last digits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Difference", "compare"]

Kind = Literal["added", "removed", "changed", "type"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two values differ."""

    path: tuple[str | int, ...]
    """The keys and indices that lead to it."""
    kind: Kind
    """Only in the second (`added`), only in the first, another value, or another type."""

    @property
    def pointer(self) -> str:
        """
        The path as one word, such as `/scores/0`; empty for the value as a whole.

        Source:
            RFC 6901, JSON pointer.
        """
        return "".join(f"/{_escaped(str(part))}" for part in self.path)


def compare(
    first: Any, second: Any, *, relative: float = 0.0, absolute: float = 0.0, limit: int = 100
) -> list[Difference]:
    """
    List where two JSON values differ, in the order of the first one.

    Args:
        first: What `json.loads` gives.
        second: Likewise.
        relative: By which part of the larger one two numbers may differ.
        absolute: By how much two numbers may differ; the more generous of both holds.
        limit: After how many differences it ends.
    """
    found: list[Difference] = []
    # By hand and not by recursion: a value may be nested deeper than Python's stack.
    open_pairs: list[tuple[tuple[str | int, ...], Any, Any]] = [((), first, second)]
    while open_pairs and len(found) < limit:
        path, one, other = open_pairs.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            found += _outside(path, one.keys(), other.keys())
            common = [key for key in one if key in other]
            open_pairs += [((*path, key), one[key], other[key]) for key in reversed(common)]
        elif isinstance(one, list) and isinstance(other, list):
            n, n_one, n_other = min(len(one), len(other)), len(one), len(other)
            found += [Difference((*path, i), "removed") for i in range(n, min(n_one, n + limit))]
            found += [Difference((*path, i), "added") for i in range(n, min(n_other, n + limit))]
            open_pairs += [((*path, i), one[i], other[i]) for i in reversed(range(n))]
        elif (kind := _differ(one, other, relative, absolute)) is not None:
            found.append(Difference(path, kind))
    return found[:limit]


def _outside(path: tuple[str | int, ...], one: Any, other: Any) -> Iterator[Difference]:
    yield from (Difference((*path, key), "removed") for key in one if key not in other)
    yield from (Difference((*path, key), "added") for key in other if key not in one)


def _differ(one: Any, other: Any, relative: float, absolute: float) -> Kind | None:
    if _is_number(one) and _is_number(other):
        return None if _are_close(one, other, relative, absolute) else "changed"
    if type(one) is not type(other):
        return "type"
    return None if one == other else "changed"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_close(one: float, other: float, relative: float, absolute: float) -> bool:
    if one == other:
        return True
    if not (relative or absolute):
        return False  # whole numbers beyond 2**53 would be equal as floats
    try:
        return math.isclose(one, other, rel_tol=relative, abs_tol=absolute)
    except OverflowError:
        return False


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
