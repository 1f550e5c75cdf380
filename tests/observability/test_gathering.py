"""What was noted is written once, whoever writes and whenever, and before anybody reads."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.http.waiting import until
from tests.observability.reading import Scrape

from mlserve.job import StageTimes
from mlserve.observability.access_log import InferenceLine, inference_line
from mlserve.observability.exposition import VARIABLE, exposed
from mlserve.observability.gathering import GatheredHistogram, Gathering
from mlserve.observability.metrics import DURATION, REJECTED, REQUESTS, STAGE, TOKENS, model_metrics

BOUNDS = (0.001, 0.5, 1, 2, 5)
AMOUNTS = st.floats(0, 10) | st.sampled_from([*BOUNDS, float("inf")])
STAGE_S = st.sampled_from([0.0, 0.0001, 0.25, 20.0])
ANSWERS = st.sampled_from(
    [(200, None), (500, "model_error"), (503, "queue_full"), (429, "rate_limited")]
)


def histogram() -> GatheredHistogram:
    return GatheredHistogram("x", "X.", buckets=BOUNDS, registry=None)


def samples(families: Iterable[Any]) -> dict[Any, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(st.lists(AMOUNTS, max_size=50), st.data())
def test_observing_many_at_once_is_observing_each_however_they_are_split(
    amounts: list[float], data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(amounts)), max_size=4).map(sorted))
    one_by_one, at_once = histogram(), histogram()

    for amount in amounts:
        one_by_one.observe(amount)
    for begin, end in pairwise([0, *cuts, len(amounts)]):
        at_once.observe_all(amounts[begin:end])

    assert samples(at_once.collect()) == pytest.approx(samples(one_by_one.collect()))


@given(st.lists(st.none() | st.integers(), max_size=300))
def test_what_is_noted_is_written_once_and_in_order_whenever_somebody_reads(
    steps: list[int | None],
) -> None:
    """`None` stands for a reader."""
    written: list[int] = []
    gathering = Gathering(written.extend)
    noted: list[int] = []

    for step in steps:
        if step is None:
            gathering.write()
            assert written == noted
        else:
            gathering.note(step)
            noted.append(step)
        assert len(noted) - len(written) < 64  # it is bounded

    gathering.write()
    assert written == noted


@pytest.mark.usefixtures("switching")
def test_nothing_is_lost_or_counted_twice_when_threads_note_and_read_at_once() -> None:
    written: list[int] = []
    gathering = Gathering(written.extend)
    begin, n_threads, n_each = threading.Barrier(6), 4, 5_000

    def note(number: int) -> None:
        begin.wait(10)
        for n in range(n_each):
            gathering.note(number * n_each + n)

    def read() -> None:
        begin.wait(10)
        for _ in range(500):
            gathering.write()

    threads = [threading.Thread(target=note, args=(n,)) for n in range(n_threads)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    gathering.write()

    assert sorted(written) == list(range(n_threads * n_each))


def test_who_reads_waits_for_who_is_writing() -> None:
    begun, released, written = threading.Event(), threading.Event(), list[int]()

    def write(noted: list[int]) -> None:
        begun.set()
        assert released.wait(10)
        written.extend(noted)

    gathering = Gathering(write)
    gathering.note(1)
    writer = threading.Thread(target=gathering.write)
    writer.start()
    assert begun.wait(10)
    seen: list[list[int]] = []

    def read() -> None:
        gathering.write()
        seen.append(written[:])

    reader = threading.Thread(target=read)
    reader.start()
    released.set()
    writer.join(10)
    reader.join(10)

    assert seen == [[1]]


def counted() -> dict[Any, float]:
    families = (REQUESTS, REJECTED, DURATION, STAGE, TOKENS)
    return {
        (name, labels): value
        for family in families
        for (name, labels), value in samples(family.collect()).items()
        if ("model", "gathered") in labels
    }


def line(answer: tuple[int, str | None], queue_s: float, infer_s: float, size: int) -> Any:
    times = StageTimes()
    times.queue_s, times.infer_s, times.batch_size = queue_s, infer_s, size
    status, code = answer
    return inference_line(
        request_id="r",
        model="m",
        version="v1",
        status=status,
        code=code,
        total_s=queue_s + infer_s,
        times=times,
        annotations={},
    )


LINES = st.builds(line, ANSWERS, STAGE_S, STAGE_S, st.integers(0, 2))


@given(st.lists(LINES, max_size=130), st.sets(st.integers(0, 130)))
def test_what_requests_add_up_to_does_not_depend_on_when_somebody_reads(
    lines: list[InferenceLine], readings: set[int]
) -> None:
    metrics = model_metrics("gathered", "v1")

    def added(readings: Iterable[int]) -> dict[Any, float]:
        before = counted()
        for n, one in enumerate(lines):
            metrics.note_request(one, {"prompt_tokens": 3})
            if n in readings:
                DURATION.collect()
        after = counted()
        return {key: after[key] - before.get(key, 0.0) for key in after}

    each = added(range(len(lines)))

    assert added(readings) == pytest.approx(each, abs=1e-6)
    n_answered = sum(one["status"] not in (429, 503) for one in lines)
    labels = frozenset({("model", "gathered"), ("version", "v1")})
    assert each["mlserve_request_duration_seconds_count", labels] == n_answered
    assert each["mlserve_tokens_total", labels | {("kind", "prompt")}] == 3 * n_answered


NOTE = """
import asyncio, os, sys
from mlserve.observability.metrics import model_metrics
metrics = model_metrics("elsewhere", "v1")

async def on_the_loop(n):
    for _ in range(n):
        metrics.note_chunk(0.5, is_first=False)

async def and_live(n):
    await on_the_loop(n)
    await asyncio.sleep(60)

"""


def start(directory: Path, order: str) -> subprocess.Popen[bytes]:
    """Have another process count in files."""
    environment = os.environ | {VARIABLE: str(directory)}
    return subprocess.Popen([sys.executable, "-c", NOTE + order], env=environment)


def n_chunks() -> float | None:
    found = Scrape(exposed("")[0].decode())
    name = "mlserve_time_between_chunks_seconds_count"
    return found.value(name, model="elsewhere", version="v1")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_what_another_process_has_noted_is_seen_while_it_lives(directory: Path) -> None:
    process = start(directory, "asyncio.run(and_live(3))")
    try:
        until(lambda: n_chunks() == 3)

        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(10)
    assert n_chunks() == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        "asyncio.run(on_the_loop(3))",
        "for _ in range(3): metrics.note_chunk(0.5, is_first=False)",
        "for _ in range(3): asyncio.run(on_the_loop(1))",
        "asyncio.run(on_the_loop(3)); os.fork() and os.wait()",
    ],
    ids=["on a loop", "without a loop", "on several loops", "before a fork"],
)
def test_all_that_another_process_has_noted_is_there_when_it_has_ended(
    directory: Path, order: str
) -> None:
    process = start(directory, order)

    assert process.wait(30) == 0
    assert n_chunks() == 3


@pytest.mark.slow
def test_without_a_loop_it_is_written_at_once(directory: Path) -> None:
    order = "metrics.note_chunk(0.5, is_first=False); os.kill(os.getpid(), 9)"

    start(directory, order).wait(30)

    assert n_chunks() == 1
