"""A version whose clients should move on: what its answers and its documents say."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.utils import format_datetime
from typing import Any, Self

from starlette.types import Scope

from mlserve.errors import ConfigurationError
from mlserve.http.exchange import Exchange
from mlserve.http.route import Opened
from mlserve.model import Model
from mlserve.observability.loggers import get_logger

__all__ = ["Deprecation"]

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecation:
    """One version, of all models or of one, that should not be used any more."""

    version: str
    """Which version."""
    name: str | None
    """Of which model; `None` = of all."""
    since: datetime
    """Since when, or from when on."""
    sunset: datetime | None
    """From when on it may be gone."""
    successor: str | None
    """Which version to use instead."""
    note: str | None
    """What users should know, in Markdown."""

    @classmethod
    def checked(
        cls,
        version: str,
        models: Collection[Model],
        *,
        name: str | None,
        since: date | None,
        sunset: date | None,
        successor: str | None,
        note: str | None,
    ) -> Self:
        """
        Make one of what a user says.

        Raises:
            ConfigurationError: If there are no such versions, or the dates cannot be.
        """
        versions = [m.version for m in models if name is None or m.name == name]
        whose = "" if name is None else f" of model {name!r}"
        for wanted in (version, successor):
            if wanted is not None and wanted not in versions:
                raise ConfigurationError(
                    f"There is no version {wanted!r}{whose}: add it before `deprecate`."
                )
        if successor == version:
            raise ConfigurationError(f"`successor` must be another version than {version!r}.")
        now = datetime.now(UTC)
        end = None if sunset is None else _moment("sunset", sunset)
        begin = min(now, end or now) if since is None else _moment("since", since)
        if end is not None and end < begin:
            raise ConfigurationError(
                f"`sunset` must not be before `since`, got {sunset!r} and {since!r}."
            )
        if end is not None and end <= now:
            # No error: a server must not refuse to start on the day after.
            logger.warning(
                "version.sunset.passed", extra={"version": version, "sunset": end.isoformat()}
            )
        return cls(
            version=version, name=name, since=begin, sunset=end, successor=successor, note=note
        )

    def covers(self, model: Model) -> bool:
        """Whether a model is meant."""
        return model.version == self.version and self.name in (None, model.name)

    @property
    def text(self) -> str:
        """What OpenAPI says."""
        parts = [f"**Deprecated** since {self.since:%Y-%m-%d}."]
        if self.sunset is not None:
            parts.append(f"May be gone from {self.sunset:%Y-%m-%d} on.")
        if self.successor is not None:
            parts.append(f"Use `{self.successor}`.")
        return " ".join([*parts, self.note] if self.note else parts)

    def teller(self, successor_path: str | None) -> Opened:
        """
        Make what adds the headers to every answer.

        Args:
            successor_path: Where the successor answers the same requests.

        Source:
            RFC 9745 (`Deprecation`), RFC 8594 (`Sunset`), RFC 5829 (`rel="successor-version"`).
        """
        headers = [(b"deprecation", f"@{int(self.since.timestamp())}".encode())]
        if self.sunset is not None:
            headers.append((b"sunset", format_datetime(self.sunset, usegmt=True).encode()))

        def tell(exchange: Exchange, scope: Scope) -> None:
            exchange.headers += headers
            if successor_path is not None:
                target = f"{scope.get('root_path', '')}{successor_path}"
                link = f'<{target}>; rel="successor-version"'
                exchange.headers.append((b"link", link.encode("latin-1", "replace")))

        return tell


def _moment(name: str, given: Any) -> datetime:
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise ConfigurationError(f"`{name}` must have a time zone, got {given!r}.")
        return given.astimezone(UTC)
    if isinstance(given, date):
        return datetime(given.year, given.month, given.day, tzinfo=UTC)
    raise ConfigurationError(f"`{name}` must be a date such as date(2027, 1, 31), got {given!r}.")
