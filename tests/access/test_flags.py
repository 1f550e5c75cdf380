"""Feature flags: values, shares, files and switches at run time."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.access.files import WatchedFile
from mlserve.access.flags import Flags, percentile
from mlserve.errors import ConfigurationError
from mlserve.testing import FakeClock

TEXT = st.text(max_size=20)


def test_a_flag_is_on_off_or_on_for_a_share() -> None:
    flags = Flags({"new": True, "old": False, "half": "50%", "word": "true"})

    n_half = sum(flags.is_on("half", f"caller {n}") for n in range(2000))

    assert flags.list() == {"half": "50%", "new": True, "old": False, "word": True}
    assert (flags.is_on("new", "a"), flags.is_on("old", "a")) == (True, False)
    assert 900 < n_half < 1100


def test_a_switch_wins_over_what_was_configured() -> None:
    flags = Flags({"beta": False})

    flags.set("beta", True)
    was = flags.is_on("beta", "a")
    flags.set("beta", "0%")

    assert (was, flags.is_on("beta", "a")) == (True, False)
    assert flags.list() == {"beta": False}


@given(TEXT, TEXT, st.floats(0, 100), st.floats(0, 100))
def test_who_is_within_a_share_is_within_each_larger_one(
    flag: str, caller: str, one: float, other: float
) -> None:
    smaller, larger = sorted((one, other))

    assert 0 <= percentile(flag, caller) < 100
    assert (percentile(flag, caller) < smaller) <= (percentile(flag, caller) < larger)


@given(TEXT, TEXT)
def test_a_caller_always_gets_the_same_answer(flag: str, caller: str) -> None:
    assert percentile(flag, caller) == percentile(flag, caller)


def test_shares_of_two_flags_are_not_of_the_same_callers() -> None:
    both = sum(percentile("a", f"{n}") < 50 and percentile("b", f"{n}") < 50 for n in range(2000))

    assert 430 < both < 570


@pytest.mark.parametrize("value", ["101%", "-1%", "half", 1, 0.5, None, "50", "1e1%", ["true"]])
def test_a_malformed_value_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="'beta' must be true, false or a share"):
        Flags({"beta": value})  # type: ignore[dict-item]  # that is what is tested


@pytest.mark.parametrize("name", ["", "two words", "-a", "a" * 65])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="A flag's name"):
        Flags({name: True})


def test_an_unknown_flag_is_refused_and_the_known_ones_are_named() -> None:
    flags = Flags({"beta": True})

    for use in (lambda: flags.set("alpha", True), lambda: flags.is_on("alpha", "a")):
        with pytest.raises(ConfigurationError, match="no flag 'alpha'; there are: beta"):
            use()


def test_a_file_wins_over_the_values_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    clock, path = FakeClock(), tmp_path / "flags.json"
    path.write_text('{"beta": true}')
    flags = Flags({"beta": False, "other": False}, path)
    flags._file = WatchedFile(path, flags._file._parse, clock=clock)  # type: ignore[union-attr]
    before = flags.list()

    path.write_text('{"beta": "25%"}')
    same = flags.list()
    clock.advance(1.5)

    assert before == same == {"beta": True, "other": False}
    assert flags.list() == {"beta": "25%", "other": False}


@pytest.mark.parametrize("text", ["", "[]", "beta", '{"beta": 1}', "\xff"])
def test_a_file_that_is_wrong_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "flags.json"
    path.write_text(text, encoding="latin-1")

    with pytest.raises(ConfigurationError):
        Flags({}, path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Flags({}, tmp_path / "none.json")


def watched(path: Path) -> tuple[WatchedFile[object], FakeClock]:
    def parse(text: str) -> object:
        try:
            return json.loads(text)
        except ValueError as exc:
            raise ConfigurationError("It is not JSON.") from exc

    clock = FakeClock()
    return WatchedFile(path, parse, clock=clock), clock


def test_a_file_that_gets_broken_or_lost_keeps_its_value_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    file, clock = watched(path)

    path.write_text("broken")
    values = []
    for _ in range(3):
        clock.advance(2)
        values.append(file.current())
    path.unlink()
    clock.advance(2)
    values.append(file.current())

    assert values == [1, 1, 1, 1]
    assert [record.message for record in caplog.records] == ["file.reload.failed"] * 2


def test_a_link_that_is_turned_to_another_file_of_the_same_size_is_seen(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (0, 0))
    link = tmp_path / "link"
    link.symlink_to("1")
    file, clock = watched(link)

    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").replace(link)
    clock.advance(2)

    assert file.current() == 2


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(" " * (2**20 + 1))

    with pytest.raises(ConfigurationError, match="larger than 1048576 bytes"):
        watched(path)
