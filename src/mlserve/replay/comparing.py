"""What became of one recorded request on another version: the same, or something else. Pure."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlserve.comparison import Difference, compare
from mlserve.records import InferenceRecord
from mlserve.records.redaction import REDACTED

__all__ = ["Answer", "Gap", "Outcome", "Tolerance", "Verdict", "judged"]

Verdict = Literal["same", "different", "failed"]

_MOST_PLACES = 100_000
_MOST_GAPS = 20
_EVERY = "*"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two numbers may be from each other; the more generous of both holds."""

    relative: float = 0.0
    """By which part of the larger one."""
    absolute: float = 0.0
    """By how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a version has answered now."""

    status: int
    """The HTTP status that it would have had."""
    code: str | None = None
    """The error's code; `None` without one."""
    body: bytes = b""
    """The answer as JSON; of a stream the list of its chunks."""
    total_ms: float = 0.0
    """How long it took, in milliseconds."""
    infer_ms: float = 0.0
    """How long its batch was in `infer`, likewise."""
    batch_size: int = 0
    """How many requests were in the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Places of an answer that differ, and are alike but for the indices in lists."""

    pattern: str
    """Where they are, such as `/embedding/*`."""
    n_places: int
    """How many there are."""
    absolute: float
    """The largest absolute difference of two numbers; 0 if none of them are numbers."""
    relative: float
    """The largest relative one, likewise."""
    kind: str
    """How the first of them differs: `changed`, `type`, `added` or `removed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one recorded request."""

    request_id: str
    verdict: Verdict
    """`failed` = it was answered with success, and is no more."""
    was: str
    """The recorded status, with the error's code if there is one."""
    now: str
    """The new one."""
    gaps: tuple[Gap, ...] = ()
    """Where the answers differ by more than is allowed, the worst first; at most 20."""
    absolute: float | None = None
    """The largest absolute difference of two numbers, allowed or not; `None` = not compared."""
    relative: float | None = None
    """The largest relative one, likewise."""
    old_total_ms: float
    new_total_ms: float
    old_infer_ms: float
    new_infer_ms: float
    old_batch_size: int
    new_batch_size: int


def judged(record: InferenceRecord, answer: Answer, tolerance: Tolerance) -> Outcome:
    """
    Say what became of a recorded request.

    Of errors the status and the code are compared, of answers the JSON values; what was redacted
    in the record is not.

    Args:
        record: The request, with payloads.
        answer: What it is answered now.
        tolerance: How far numbers may differ.
    """
    was_ok = record.status == 200 and record.code is None
    is_ok = answer.status == 200 and answer.code is None
    was, now = _status(record.status, record.code), _status(answer.status, answer.code)
    verdict: Verdict = "same" if was == now else "failed" if was_ok else "different"
    gaps: tuple[Gap, ...] = ()
    absolute = relative = None
    if was_ok and is_ok:
        gaps, absolute, relative = _compared(_read(record.response), _read(answer.body), tolerance)
        verdict = "different" if gaps else "same"
    return Outcome(
        request_id=record.request_id,
        verdict=verdict,
        was=was,
        now=now,
        gaps=gaps,
        absolute=absolute,
        relative=relative,
        old_total_ms=record.total_ms,
        new_total_ms=answer.total_ms,
        old_infer_ms=record.infer_ms,
        new_infer_ms=answer.infer_ms,
        old_batch_size=record.batch_size,
        new_batch_size=answer.batch_size,
    )


def _status(status: int, code: str | None) -> str:
    return str(status) if code is None else f"{status} {code}"


def _read(text: str | bytes | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):  # such as numbers of thousands of digits
        return text if isinstance(text, str) else (text or b"").decode(errors="replace")


def _compared(
    old: Any, new: Any, tolerance: Tolerance
) -> tuple[tuple[Gap, ...], float | None, float | None]:
    """Give where two answers differ too much, and the largest differences that there are at all."""
    exact = compare(old, new, limit=_MOST_PLACES)
    if not exact:
        return (), 0.0, 0.0
    distances = [_distance(old, new, difference) for difference in exact]
    beyond = compare(
        old, new, relative=tolerance.relative, absolute=tolerance.absolute, limit=_MOST_PLACES
    )
    gaps = _gaps(old, new, [each for each in beyond if not _is_redacted(old, each)])
    return gaps, max(each[0] for each in distances), max(each[1] for each in distances)


def _gaps(old: Any, new: Any, differences: Iterable[Difference]) -> tuple[Gap, ...]:
    alike: dict[str, list[Difference]] = {}
    for difference in differences:
        path = tuple(_EVERY if isinstance(part, int) else part for part in difference.path)
        alike.setdefault(Difference(path, difference.kind).pointer, []).append(difference)
    gaps = [_gap(pattern, old, new, found) for pattern, found in alike.items()]
    gaps.sort(key=lambda gap: (gap.kind == "changed", -gap.absolute, -gap.n_places))
    return tuple(gaps[:_MOST_GAPS])


def _gap(pattern: str, old: Any, new: Any, differences: Sequence[Difference]) -> Gap:
    distances = [_distance(old, new, difference) for difference in differences]
    return Gap(
        pattern=pattern,
        n_places=len(differences),
        absolute=max(absolute for absolute, _ in distances),
        relative=max(relative for _, relative in distances),
        kind=differences[0].kind,
    )


def _distance(old: Any, new: Any, difference: Difference) -> tuple[float, float]:
    """Give the absolute and the relative difference of two numbers; nothing of what is none."""
    if difference.kind != "changed":
        return 0.0, 0.0
    one, other = _value_at(old, difference.path), _value_at(new, difference.path)
    if isinstance(one, bool) or not isinstance(one, int | float):
        return 0.0, 0.0
    try:
        absolute = min(abs(float(one) - float(other)), sys.float_info.max)
        return absolute, absolute / max(abs(float(one)), abs(float(other)))
    except OverflowError:  # beyond what floats can hold
        return sys.float_info.max, 1.0


def _is_redacted(old: Any, difference: Difference) -> bool:
    return difference.kind != "added" and _value_at(old, difference.path) == REDACTED


def _value_at(value: Any, path: Iterable[str | int]) -> Any:
    for part in path:
        value = value[part]
    return value
