"""Feature flags: what is switched on, for whom, and switched over while the server runs."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from mlserve.access.files import WatchedFile
from mlserve.errors import ConfigurationError

__all__ = ["Flags", "percentile"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")
_ALL = 100.0


class Flags:
    """
    The feature flags of one server. Any thread.

    What was switched by `set` wins over the file, and the file over the values of the start; of
    other processes `set` changes nothing, the file does.

    Args:
        values: What there is at the start: `True`, `False`, or a share of callers as `"25%"`.
        file: A JSON object of the same form, read again when it changes; `None` = none.

    Raises:
        ConfigurationError: If a name or value is malformed, or the file cannot be read.

    Example:
        >>> flags = Flags({"beta": False})
        >>> flags.set("beta", "50%")
        >>> flags.list()
        {'beta': '50%'}
    """

    def __init__(
        self, values: Mapping[str, bool | str] | None = None, file: Path | None = None
    ) -> None:
        self._values = _checked(values or {})
        self._file = None if file is None else WatchedFile(file, _parse)
        self._switched: dict[str, float] = {}

    def list(self) -> dict[str, bool | str]:
        """Give every flag as it is now, by name."""
        return {name: _shown(share) for name, share in sorted(self._now().items())}

    def set(self, name: str, value: bool | str) -> None:
        """
        Switch a flag in this process, until the process ends.

        Args:
            name: A flag that there is.
            value: `True`, `False`, or a share of callers as `"25%"`.

        Raises:
            ConfigurationError: If there is no such flag, or the value is malformed.
        """
        self.require(name)
        self._switched = {**self._switched, name: _share_of(name, value)}

    def is_on(self, name: str, caller: str) -> bool:
        """
        Say whether a flag is on for a caller; always the same for the same caller and share.

        Raises:
            ConfigurationError: If there is no such flag.
        """
        share = self._now().get(name)
        if share is None:
            self.require(name)
            return False
        return percentile(name, caller) < share

    def require(self, name: str) -> None:
        """
        Refuse a flag that there is not.

        Raises:
            ConfigurationError: If there is none of this name.
        """
        known = self._now()
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ConfigurationError(
                f"There is no flag {str(name)[:64]!r}; there are: {names}."
                " Add it to `ServerSettings(flags={…})` or `MLSERVE_FLAGS`."
            )

    def _now(self) -> dict[str, float]:
        if self._file is None:
            return {**self._values, **self._switched}
        return {**self._values, **self._file.current(), **self._switched}

    def __repr__(self) -> str:
        return f"<Flags {self.list()}>"


def percentile(flag: str, caller: str) -> float:
    """
    Give where a caller stands among all, from 0 to below 100, for one flag; pure.

    Who is within a share is within each larger one, and flags are independent of one another.
    """
    digest = hashlib.sha256(f"{flag}\0{caller}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48 * _ALL


def _parse(text: str) -> dict[str, float]:
    try:
        values = json.loads(text)
    except ValueError as exc:
        raise ConfigurationError(f"The file of flags is not JSON: {exc}.") from exc
    if not isinstance(values, dict):
        raise ConfigurationError('The file of flags must be an object such as {"beta": true}.')
    return _checked(values)


def _checked(values: Mapping[str, bool | str]) -> dict[str, float]:
    for name in values:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"A flag's name must be 1 to 64 letters, digits, '.', '_' or '-', got {name!r}."
            )
    return {name: _share_of(name, value) for name, value in values.items()}


def _share_of(name: str, value: object) -> float:
    if isinstance(value, bool) or value in ("true", "false"):
        return _ALL if value in (True, "true") else 0.0
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[1]) > _ALL:
        raise ConfigurationError(
            f"The flag {name!r} must be true, false or a share of callers such as '25%',"
            f" got {value!r}."
        )
    return float(match[1])


def _shown(share: float) -> bool | str:
    return share == _ALL if share in (0.0, _ALL) else f"{share:g}%"
