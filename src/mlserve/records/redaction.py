"""Taking out of payloads what must not be kept. Pure."""

import json
from collections.abc import Sequence
from typing import Any

__all__ = ["REDACTED", "is_path", "redacted"]

REDACTED = "[redacted]"
"""What stands in the place of a value."""

_EVERY = "*"


def is_path(path: object) -> bool:
    """Say whether something is a path such as `user.email` or `messages.content`."""
    return isinstance(path, str) and all(path.split("."))


def redacted(text: str | None, paths: Sequence[str]) -> str | None:
    """
    Replace the values at some paths of a JSON text.

    The parts of a path are names of fields, or `*` for all of them. Lists need no part of their
    own: a path goes on in each of their items.

    Args:
        text: The JSON text.
        paths: The paths, such as `messages.content`.

    Returns:
        The text without these values; `None` if it is no JSON, since nobody knows what it holds.

    Example:
        >>> redacted('{"user": {"email": "a@b.example", "age": 7}}', ["user.email"])
        '{"user": {"email": "[redacted]", "age": 7}}'
    """
    if text is None:
        return None
    try:
        value = json.loads(text)
        for path in paths:
            _redact(value, path.split("."))
        return json.dumps(value)
    except (ValueError, RecursionError):
        return None


def _redact(value: Any, parts: list[str]) -> None:
    left: list[tuple[Any, int]] = [(value, 0)]
    while left:
        place, at = left.pop()
        if isinstance(place, list):
            left += [(item, at) for item in place]
        elif isinstance(place, dict):
            names = list(place) if parts[at] == _EVERY else [parts[at]]
            for name in (name for name in names if name in place):
                if at + 1 == len(parts):
                    place[name] = REDACTED
                else:
                    left.append((place[name], at + 1))
