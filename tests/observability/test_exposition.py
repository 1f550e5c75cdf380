"""What several processes have counted is shown as one."""

import copy
import fcntl
import os
import subprocess
import sys
from collections import Counter as Tally
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.samples import Sample
from tests.http.waiting import until
from tests.observability.reading import Scrape

from mlserve.observability import exposition
from mlserve.observability.exposition import (
    VARIABLE,
    exposed,
    forget_process,
    forget_process_soon,
    merged,
)

LABELS = st.sampled_from([{}, {"model": "a"}, {"model": "b"}, {"model": "a", "version": "v1"}])
SAMPLES = st.lists(
    st.tuples(st.sampled_from(["_total", "_sum", "_created"]), LABELS, st.integers(0, 9)),
    max_size=6,
)
FAMILIES = st.dictionaries(st.sampled_from("xyz"), SAMPLES, max_size=3).map(
    lambda found: [family(name, samples) for name, samples in found.items()]
)


def family(name: str, samples: list[tuple[str, dict[str, str], int]]) -> Metric:
    made = Metric(name, f"About {name}.", "counter")
    for suffix, labels, value in samples:
        made.samples.append(Sample(name + suffix, labels, float(value)))
    return made


def totals(families: list[Metric]) -> Tally[Any]:
    counts: Tally[Any] = Tally()
    for one in families:
        for sample in one.samples:
            if not sample.name.endswith("_created"):
                counts[one.name, sample.name, frozenset(sample.labels.items())] += int(sample.value)
    return counts


@given(FAMILIES, FAMILIES)
def test_every_count_is_in_the_sum_once(own: list[Metric], others: list[Metric]) -> None:
    assert totals(merged(own, others)) == totals([*own, *others])


@given(FAMILIES, FAMILIES)
def test_no_family_and_no_sample_stands_there_twice(
    own: list[Metric], others: list[Metric]
) -> None:
    found = merged(own, others)

    keys = [(s.name, frozenset(s.labels.items())) for one in found for s in one.samples]
    assert len({one.name for one in found}) == len(found)
    assert len(set(keys)) == len(keys)


@given(FAMILIES, FAMILIES)
def test_what_is_added_up_is_left_as_it_was(own: list[Metric], others: list[Metric]) -> None:
    before = copy.deepcopy([own, others])

    merged(own, others)

    assert [own, others] == before


@given(FAMILIES, FAMILIES)
def test_the_order_of_the_two_does_not_matter(own: list[Metric], others: list[Metric]) -> None:
    assert totals(merged(own, others)) == totals(merged(others, own))


def test_a_family_keeps_its_kind_and_its_help() -> None:
    [found] = merged([family("x", [])], [])

    assert (found.name, found.type, found.documentation) == ("x", "counter", "About x.")


def test_when_something_was_first_counted_is_not_shown() -> None:
    body, _ = exposed("")

    assert b"_created" not in body
    assert b"python_info" in body


def test_a_scraper_gets_the_format_that_it_asks_for() -> None:
    text, plain = exposed("text/plain")
    openmetrics, other = exposed("application/openmetrics-text; version=1.0.0")

    assert plain.startswith("text/plain")
    assert other.startswith("application/openmetrics-text")
    assert openmetrics.endswith(b"# EOF\n")
    assert not text.endswith(b"# EOF\n")


COUNT = """
import os, sys
from prometheus_client import Counter, Gauge, Histogram
Counter("exposition_things", "Things.").inc(int(sys.argv[1]))
Histogram("exposition_seconds", "Seconds.", buckets=(1,)).observe(0.5)
Gauge("exposition_own", "Of this process.").set(1)
Gauge("exposition_live", "While it lives.", multiprocess_mode="livesum").set(1)
Gauge("exposition_peak", "The highest ever.", multiprocess_mode="max").set(int(sys.argv[1]))
print(os.getpid())
"""


def count_in_process(directory: Path, n: int) -> int:
    """Have another process count, and give its number."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(n)],
        env=os.environ | {VARIABLE: str(directory)},
        capture_output=True,
        text=True,
        timeout=15,
        check=True,
    )
    return int(done.stdout)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_what_processes_that_have_ended_counted_stays_in_one_file(directory: Path) -> None:
    for n in (3, 4, 5):
        forget_process(count_in_process(directory, n))

    found = Scrape(exposed("")[0].decode())
    assert found.value("exposition_things_total") == 12
    assert found.value("exposition_seconds_count") == 3
    assert found.value("exposition_seconds_bucket", le="1.0") == 3
    assert found.value("exposition_peak") == 5
    assert found.total("exposition_live") == 0
    assert found.total("exposition_own") == 0
    counts = sorted(path.name for path in directory.glob("[ch]*.db"))
    assert counts == ["counter_ended.db", "histogram_ended.db"]


@pytest.mark.slow
def test_what_a_process_counts_is_shown_while_it_lives(directory: Path) -> None:
    pid = count_in_process(directory, 2)

    found = Scrape(exposed("")[0].decode())

    assert found.value("exposition_things_total") == 2
    assert found.value("exposition_own", pid=str(pid)) == 1
    assert found.value("exposition_live") == 1


def test_a_file_that_cannot_be_read_is_no_harm_when_its_process_ends(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "counter_4711.db").write_bytes(b"")

    forget_process(4711)

    assert "metrics.forget.failed" in caplog.text


def test_a_scrape_that_stands_still_holds_up_nobody_who_forgets_a_process(directory: Path) -> None:
    (directory / "gauge_all_4711.db").touch()

    with exposition._locked(directory, fcntl.LOCK_SH):
        forget_process_soon(4711)
        kept = (directory / "gauge_all_4711.db").exists()

    assert kept
    until(lambda: not (directory / "gauge_all_4711.db").exists())


def test_without_other_processes_there_is_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(exposition, "_made", [])

    forget_process(4711)

    assert exposition._directory() is None


def test_the_directory_is_made_once_and_a_given_one_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(exposition, "_made", [])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    made = exposition.shared_directory()
    again = exposition.shared_directory()
    exposition._remove(made, os.getpid() + 1)
    kept = os.path.isdir(made)
    exposition._remove(made, os.getpid())
    gone = not os.path.isdir(made)
    monkeypatch.setenv(VARIABLE, "/given")

    assert made == again
    assert kept
    assert gone
    assert exposition.shared_directory() == "/given"


def test_a_directory_that_goes_at_the_end_of_the_server_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exposition, "_directory", lambda: tmp_path / "gone")

    exposition.forget_process(1)

    assert not caplog.records
