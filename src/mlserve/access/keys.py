"""
API keys: read from configuration, kept as SHA-256 digests, compared in constant time.

Keys are random and long, so that a fast hash is enough: a slow one would let anybody keep the
server busy with wrong keys.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlserve.access.environment import read_secrets
from mlserve.access.files import WatchedFile
from mlserve.errors import ConfigurationError

__all__ = ["LONGEST", "NAME", "SCOPES", "Key", "find_key", "key_source", "new_key", "parse_keys"]

SCOPES = ("infer", "admin")
"""What a key may be for."""
LONGEST = 512
"""How long a key may be, in bytes."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a key may be called."""

_SHORTEST = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1: what `Bearer` can carry
_NAMED = re.compile(r"(?P<about>[^=]*)=(?P<secret>[^=].*)")  # else the `=` is padding of a key
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_PREFIX = "mls_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key, without what it is."""

    name: str
    """What records and logs call it."""
    scopes: frozenset[str]
    """What it is for."""
    digest: bytes = field(repr=False)
    """SHA-256 of the key."""


def parse_keys(entries: Iterable[str]) -> tuple[Key, ...]:
    """
    Read keys; pure.

    Args:
        entries: Each is `key`, `name=key` or `name:scope+scope=key`; instead of a key may stand
            `sha256:` and its digest in hexadecimal. No scope = `infer`. Several may have one name.

    Raises:
        ConfigurationError: If one is malformed, too short or there twice, or there is none. The
            message tells its number, never the key.
    """
    keys: list[Key] = []
    for number, entry in enumerate(entries, start=1):
        key = _parse_entry(entry.strip(), number)
        if any(key.digest == other.digest for other in keys):
            raise _wrong(number, "is the same key as an earlier one")
        keys.append(key)
    if not keys:
        raise ConfigurationError(
            "There is no API key, so that nobody could ask. Make one with `mlserve keys new`."
        )
    return tuple(keys)


def find_key(keys: Sequence[Key], presented: bytes) -> Key | None:
    """
    Find the key that a client has sent.

    Takes the same time whichever it is, or if it is none of them: digests have one length, each is
    compared in constant time, and all of them are.
    """
    digest = hashlib.sha256(presented).digest()
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def new_key() -> tuple[str, str]:
    """Make a random key of 256 bits, and what to configure for it: `sha256:` and its digest."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def key_source(source: str | Path | Sequence[str] | None) -> Callable[[], tuple[Key, ...]]:
    """
    Read keys, and give what gives them as they are now.

    Args:
        source: The path of a file with one entry a line, which is read again when it changes; a
            list of entries; or `None` = the variable `MLSERVE_API_KEYS`, with commas in between.

    Raises:
        ConfigurationError: If there is none, or one is wrong.
    """
    if isinstance(source, str | Path):
        return WatchedFile(Path(source), _parse_lines).current
    if source is None:
        given = read_secrets().api_keys
        if given is None:
            raise ConfigurationError(
                "No API key is configured, so that nobody could ask. Set `MLSERVE_API_KEYS`, or"
                " name a file or a list: `api_keys('keys.txt')`. `mlserve keys new` makes a key."
            )
        source = given.get_secret_value().split(",")
    keys = parse_keys(source)
    return lambda: keys


def _parse_lines(text: str) -> tuple[Key, ...]:
    lines = (line.strip() for line in text.splitlines())
    return parse_keys(line for line in lines if line and not line.startswith("#"))


def _parse_entry(entry: str, number: int) -> Key:
    match = _NAMED.fullmatch(entry)
    about, secret = (match["about"], match["secret"]) if match else ("", entry)
    name, _, scopes = about.partition(":")
    wanted = frozenset(scopes.split("+")) if scopes else frozenset(SCOPES[:1])
    if match is not None and not NAME.fullmatch(name):
        raise _wrong(number, "has a malformed name before its `=`")
    if not wanted <= set(SCOPES):
        raise _wrong(number, f"has a scope that there is not; there are {', '.join(SCOPES)}")
    return Key(name=name or f"key-{number}", scopes=wanted, digest=_digest_of(secret, number))


def _digest_of(secret: str, number: int) -> bytes:
    if secret.startswith("sha256:"):
        digest = _DIGEST.fullmatch(secret)
        if digest is None:
            raise _wrong(number, "needs 64 hexadecimal digits behind `sha256:`")
        return bytes.fromhex(digest[1])
    if not secret:
        raise _wrong(number, "is empty")
    if len(secret) < _SHORTEST:
        raise _wrong(number, f"is shorter than {_SHORTEST} characters")
    if len(secret) > LONGEST:
        raise _wrong(number, f"is longer than {LONGEST} characters")
    if not _TOKEN.fullmatch(secret):
        raise _wrong(number, "has other characters than letters, digits and `._~+/-`")
    return hashlib.sha256(secret.encode()).digest()


def _wrong(number: int, what: str) -> ConfigurationError:
    return ConfigurationError(f"API key {number} {what}. `mlserve keys new` makes a good one.")
