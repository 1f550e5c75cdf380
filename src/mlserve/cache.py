"""
Which answers are kept: the option, what a request may wish, and the store. Pure.

Source of the wishes:
    RFC 9111, section 5.2.1: `Cache-Control` of a request.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from mlserve.errors import ConfigurationError

__all__ = ["AnswerStore", "Cache", "CacheUse", "Kept", "Wish", "wish_of"]

Key = tuple[Any, ...]
"""What a request is, in full; its first part is the request itself, in bytes."""

_ENTRY_BYTES = 400  # what the objects around a key and an answer take, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """
    How answers are kept, for a handler that always gives equal requests equal answers.

    Raises:
        ConfigurationError: If a value is out of range, on creation.
    """

    max_bytes: int = 64 * 2**20
    """How much requests and their answers may take, in bytes; what was not used longest goes."""
    max_entries: int = 100_000
    """How many answers are kept at most."""
    ttl_s: float | None = None
    """For how long an answer is given, in seconds; `None` = as long as it is kept."""
    per_key: bool = False
    """Whether each API key has answers of its own."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_entries"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(
                    f"`{name}` must be a whole number of at least 1, got {value!r}."
                )
        ttl_s: Any = self.ttl_s
        if ttl_s is not None and not (isinstance(ttl_s, int | float) and ttl_s > 0):
            raise ConfigurationError(f"`ttl_s` must be more than 0 or `None`, got {ttl_s!r}.")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wishes of the cache."""

    reads: bool = True
    """Whether it takes an answer that was made for another request."""
    stores: bool = True
    """Whether its own answer may be kept."""
    max_age_s: float = math.inf
    """How old an answer may be that it takes, in seconds."""


def wish_of(cache_control: str) -> Wish:
    """
    Read the header `Cache-Control` of a request; what is unknown in it is passed over.

    Example:
        >>> wish_of("no-cache")
        Wish(reads=False, stores=True, max_age_s=inf)
        >>> wish_of("max-age=60").max_age_s
        60.0
    """
    directives = {}
    for part in cache_control.lower().split(","):
        name, _, value = part.strip().partition("=")
        directives[name.strip()] = value.strip().strip('"')
    age = directives.get("max-age")
    max_age_s = math.inf
    if age is not None:  # what is no number is the strictest
        max_age_s = float(age[:18]) if age.isascii() and age.isdigit() else 0.0
    stores = "no-store" not in directives
    return Wish(stores and "no-cache" not in directives, stores, max_age_s)


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What the cache had to do with an answer."""

    kind: Literal["hit", "miss", "coalesced", "bypass"]
    """`coalesced`: an equal request was being answered already."""
    age_s: float = 0.0
    """How old the answer is, in seconds."""
    left_s: float | None = None
    """For how long it will be given, in seconds; `None` = no bound."""
    is_stored: bool = False
    """Whether it is kept now."""
    is_wished: bool = False
    """Whether the request itself asked for a new one."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it was sent."""

    body: bytes
    """Its body."""
    media_type: str
    """Its `Content-Type`."""
    at: float
    """When it was made, in monotonic seconds."""


class AnswerStore:
    """
    Answers by request; bounded in number and bytes, the least recently used goes first.

    Args:
        options: The bounds.

    Example:
        >>> store = AnswerStore(Cache(max_entries=1))
        >>> store.put((b"1",), Kept(b"2", "application/json", at=0.0))
        True
        >>> store.get((b"1",), now=5.0).body
        b'2'
    """

    def __init__(self, options: Cache) -> None:
        self._options = options
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self.n_bytes = 0
        """How much requests and answers take together, in bytes."""

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key, now: float, max_age_s: float = math.inf) -> Kept | None:
        """
        Give an answer that is young enough.

        Args:
            key: The request.
            now: Monotonic seconds.
            max_age_s: How old it may be at most, in seconds.
        """
        kept = self._kept.get(key)
        if kept is None:
            return None
        age_s = now - kept.at
        if self._options.ttl_s is not None and age_s >= self._options.ttl_s:
            self._drop(key)
            return None
        if age_s > max_age_s:
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, kept: Kept) -> bool:
        """Keep an answer in the place of an older one; `False` if it alone is too large."""
        self._drop(key)
        size = _size(key, kept)
        if size > self._options.max_bytes:
            return False
        self._kept[key] = kept
        self.n_bytes += size
        while self.n_bytes > self._options.max_bytes or len(self) > self._options.max_entries:
            self._drop(next(iter(self._kept)))
        return True

    def left_s(self, kept: Kept, now: float) -> float | None:
        """Say for how many more seconds an answer is given; `None` = no bound."""
        return None if self._options.ttl_s is None else kept.at + self._options.ttl_s - now

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        self.n_bytes = 0

    def _drop(self, key: Key) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self.n_bytes -= _size(key, kept)

    def __repr__(self) -> str:
        return f"<AnswerStore of {len(self)} answers, {self.n_bytes} bytes>"


def _size(key: Key, kept: Kept) -> int:
    return len(key[0]) + len(kept.body) + _ENTRY_BYTES
