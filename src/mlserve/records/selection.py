"""Which of the records that are kept somewhere are meant. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["Kept", "Selection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Some records of one version of a model, the latest ones first."""

    model: str
    """The model's name."""
    version: str
    """Its version."""
    since: datetime | None = None
    """Only requests that ended then or later; `None` = all."""
    only: Literal["ok", "all"] = "ok"
    """Those that were answered with success, or all."""
    limit: int = 1000
    """How many at most."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How many records there are of one version of a model."""

    model: str
    version: str
    n_records: int
