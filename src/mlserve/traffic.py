"""
How the requests of a model's unversioned path are divided among its versions. Pure.

A request is a point between 0 and 1, made of what stays the same for its client; the versions
divide that line by their weights. So a client keeps its version while the weights stay, and when
they change only those move whose part of the line changes hands.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from mlserve.errors import ConfigurationError

__all__ = ["Shadow", "Traffic", "point_of", "version_number"]

_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Shadow:
    """
    A version that gets copies of requests that another one has answered.

    Nobody sees its answers: they are compared, counted and logged.

    Raises:
        ConfigurationError: If a value is out of range, on creation.
    """

    version: str
    """Which version gets the copies."""
    share: float = field(default=1.0, kw_only=True)
    """Which part of the requests is copied, from 0 to 1."""
    relative: float = field(default=0.0, kw_only=True)
    """By which part of the larger one two numbers may differ."""
    absolute: float = field(default=0.0, kw_only=True)
    """By how much two numbers may differ."""
    timeout_s: float | None = field(default=None, kw_only=True)
    """How long a copy may take, in seconds; `None` = as long as the version's requests."""
    max_running: int = field(default=2, kw_only=True)
    """How many copies are with the version at once."""
    max_waiting: int = field(default=32, kw_only=True)
    """How many copies wait for that; those beyond are dropped."""

    def __post_init__(self) -> None:
        if not isinstance(self.version, str):
            raise ConfigurationError(f"`version` must be such as 'v2', got {self.version!r}.")
        _require_number("share", self.share, most=1)
        _require_number("relative", self.relative, most=1)
        _require_number("absolute", self.absolute)
        if self.timeout_s is not None:
            _require_number("timeout_s", self.timeout_s)
            if self.timeout_s == 0:
                raise ConfigurationError("`timeout_s` must be more than 0.")
        _require_whole("max_running", self.max_running, 1)
        _require_whole("max_waiting", self.max_waiting, 0)

    @classmethod
    def of(cls, given: Any) -> "Shadow | None":
        """
        Make the option of what users may write: a version, a version with a share, or nothing.

        Raises:
            ConfigurationError: If it is none of these.
        """
        match given:
            case None | Shadow():
                return given
            case str():
                return cls(given)
            case (str() as version, share):
                return cls(version, share=share)
        raise ConfigurationError(
            f"`shadow` must be a version, a pair such as ('v2', 0.1) or `Shadow('v2', …)`,"
            f" got {given!r}."
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """
    The weights of a model's versions, and the one that gets copies.

    Never changed, only replaced: a request sees one or the other, never something in between.
    """

    weights: Mapping[str, float]
    """Which part of the requests each version gets; they sum to one."""
    shadow: Shadow | None = None

    @classmethod
    def checked(cls, weights: Any, shadow: Shadow | None, versions: Collection[str]) -> Self:
        """
        Make one of what a user says.

        Args:
            weights: The weights of the versions; what is left out gets nothing.
            shadow: Which version gets copies.
            versions: Those that there are.

        Raises:
            ConfigurationError: If that cannot be done; the message says what to write.
        """
        if not isinstance(weights, Mapping) or not weights:
            raise ConfigurationError(
                f"The weights must be such as {{'v1': 0.9, 'v2': 0.1}}, got {weights!r}."
            )
        named = [*weights, *([shadow.version] if shadow else [])]
        if unknown := [version for version in named if version not in versions]:
            there = ", ".join(f"`{version}`" for version in versions)
            raise ConfigurationError(
                f"There is no version {unknown[0]!r}; there is {there}. Add it before."
            )
        for version, weight in weights.items():
            _require_number(f"the weight of {version}", weight, most=1)
        total = math.fsum(weights.values())
        if abs(total - 1) > _TOLERANCE:
            raise ConfigurationError(f"The weights must sum to 1, got {total:g}.")
        if shadow is not None and weights.get(shadow.version, 0) >= 1 - _TOLERANCE:
            raise ConfigurationError(
                f"`{shadow.version}` answers every request itself, so nothing would be copied to"
                " it. Give it less weight, or leave out `shadow`."
            )
        return cls(dict(sorted(weights.items(), key=lambda item: version_number(item[0]))), shadow)

    @property
    def main(self) -> str:
        """The version with the greatest weight; of equal ones the newest."""
        return max(self.weights, key=lambda name: (self.weights[name], version_number(name)))

    def choose(self, point: float, among: Collection[str]) -> str | None:
        """
        Give the version that a request goes to.

        Args:
            point: Where it stands, from 0 to below 1.
            among: The versions that can answer it; the others' weights count for nothing.

        Returns:
            The version; `None` if none of these has any weight.
        """
        able = {name: w for name, w in self.weights.items() if w > 0 and name in among}
        target, reached = point * math.fsum(able.values()), 0.0
        for version, weight in able.items():
            reached += weight
            if target < reached:
                return version
        return next(reversed(able), None)  # the sum of floats fell short of the target


def point_of(salt: str, key: str) -> float:
    """
    Give the point between 0 (with it) and 1 (without) that a key always has.

    Args:
        salt: Makes the points of one model independent of those of another.
        key: What stays the same.

    Source:
        BLAKE2b, RFC 7693; its first 53 bits, which is what a float holds.
    """
    digest = hashlib.blake2b(f"{salt}\0{key}".encode("utf-8", "replace"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def version_number(version: str) -> int:
    """Give the number of a version such as `v12`."""
    return int(version[1:])


def _require_number(name: str, value: Any, *, most: float = math.inf) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and 0 <= value <= most):
        bound = "at least 0" if math.isinf(most) else f"from 0 to {most:g}"
        raise ConfigurationError(f"`{name}` must be a number {bound}, got {value!r}.")


def _require_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"`{name}` must be a whole number of at least {least}, got {value!r}."
        )
