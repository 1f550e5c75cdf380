"""API keys: how they are configured, kept and found."""

import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.access import keys as module
from mlserve.access.keys import find_key, key_source, new_key, parse_keys
from mlserve.errors import ConfigurationError

CANARY = "canary-canary-canary"
TOKENS = st.text(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~+/-", min_size=16
)


def digest(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("entry", "name", "scopes"),
    [
        (CANARY, "key-1", {"infer"}),
        (f"ci={CANARY}", "ci", {"infer"}),
        (f" ci:admin={CANARY} ", "ci", {"admin"}),
        (f"ci:infer+admin={CANARY}", "ci", {"infer", "admin"}),
        (digest(CANARY), "key-1", {"infer"}),
        (f"ci:admin={digest(CANARY)}", "ci", {"admin"}),
        (digest(CANARY).upper().replace("SHA", "sha"), "key-1", {"infer"}),
    ],
)
def test_an_entry_says_name_scopes_and_key(entry: str, name: str, scopes: set[str]) -> None:
    (key,) = parse_keys([entry])

    assert (key.name, set(key.scopes)) == (name, scopes)
    assert find_key([key], CANARY.encode()) is key


@pytest.mark.parametrize("padding", ["=", "=="])
def test_padding_belongs_to_the_key(padding: str) -> None:
    keys = parse_keys([f"c2VjcmV0LXNlY3JldA{padding}", f"ci=b3RoZXItb3RoZXItbw{padding}"])

    assert find_key(keys, f"c2VjcmV0LXNlY3JldA{padding}".encode()) is keys[0]
    assert find_key(keys, f"b3RoZXItb3RoZXItbw{padding}".encode()) is keys[1]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("", "is empty"),
        ("ci=", "malformed name|shorter|empty|other characters"),
        ("canary-canary-c", "shorter than 16"),
        ("c" * 513, "longer than 512"),
        ("ci=canary-canary-c", "shorter than 16"),
        ("canary canary canary", "other characters"),
        ("canäry-canary-canary", "other characters"),
        ("sha256:canary", "64 hexadecimal digits"),
        (f"ci:root={CANARY}", "scope that there is not"),
        (f"ci:={CANARY}=x", "other characters"),
        (f"a b={CANARY}", "malformed name"),
        (f"={CANARY}", "malformed name"),
    ],
)
def test_a_bad_entry_is_refused_by_its_number_and_never_quoted(entry: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"API key 2 .*({reason})") as caught:
        parse_keys(["a-good-key-for-tests", entry])

    assert "can" not in str(caught.value)


def test_no_key_at_all_and_the_same_key_twice_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no API key"):
        parse_keys([])
    with pytest.raises(ConfigurationError, match="API key 2 is the same key"):
        parse_keys([CANARY, f"other={digest(CANARY)}"])


def test_two_keys_may_have_one_name_while_one_replaces_the_other() -> None:
    keys = parse_keys([f"ci={CANARY}", "ci=another-good-key-for-tests"])

    assert [key.name for key in keys] == ["ci", "ci"]


@given(st.lists(TOKENS, min_size=1, max_size=5, unique=True), st.binary(max_size=40))
def test_a_key_is_found_and_nothing_else_is(tokens: list[str], other: bytes) -> None:
    keys = parse_keys(tokens)

    found = [find_key(keys, token.encode()) for token in tokens]

    assert found == list(keys)
    assert (find_key(keys, other) is None) == (other not in [token.encode() for token in tokens])


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    n_compared = 0

    class Counting:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            nonlocal n_compared
            n_compared += 1
            assert len(one) == len(other) == 32
            return hmac.compare_digest(one, other)

    monkeypatch.setattr(module, "hmac", Counting)
    tokens = [f"a-good-key-for-test-{n}" for n in range(5)]
    keys = parse_keys(tokens)

    counts = []
    for presented in (tokens[0], tokens[4], "none"):
        n_compared = 0
        find_key(keys, presented.encode())
        counts.append(n_compared)

    assert counts == [5, 5, 5]


def test_keys_show_neither_themselves_nor_their_digests() -> None:
    (key,) = parse_keys([CANARY])

    assert "canary" not in repr(key)
    assert key.digest.hex() not in repr(key)
    assert str(key.digest) not in repr(key)


def test_new_keys_differ_and_are_what_their_digest_says() -> None:
    made = [new_key() for _ in range(20)]

    assert len({key for key, _ in made}) == 20
    assert all(digest(key) == configured for key, configured in made)
    assert all(len(key) > 43 and parse_keys([key]) for key, _ in made)


def test_keys_come_from_the_environment_and_from_dotenv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"MLSERVE_API_KEYS={CANARY}\n")
    of_file = key_source(None)()

    monkeypatch.setenv("MLSERVE_API_KEYS", f"ci={digest(CANARY)},ops:admin=another-key-of-ours")
    of_environment = key_source(None)()

    assert [key.name for key in of_file] == ["key-1"]
    assert [key.name for key in of_environment] == ["ci", "ops"]


@pytest.mark.parametrize("value", [None, "", "  ", ","])
def test_an_environment_without_keys_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if value is not None:
        monkeypatch.setenv("MLSERVE_API_KEYS", value)

    with pytest.raises(ConfigurationError, match="API key"):
        key_source(None)


def test_a_file_of_keys_has_one_a_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"# of the build\n\nci={CANARY}\n  ops:admin=another-key-of-ours\n")

    names = [key.name for key in key_source(str(path))()]

    assert names == ["ci", "ops"]


def test_a_key_in_the_place_of_a_path_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        key_source(CANARY)

    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
