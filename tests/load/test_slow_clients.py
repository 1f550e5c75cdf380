"""Clients that send or read too slowly: they are cut or held back, and disturb nobody."""

import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
from tests.faults.processes import ServedProcess, serving
from tests.figures import note
from tests.http.waiting import until
from tests.load.crowd import (
    ECHO,
    HEALTH,
    SLOW,
    after,
    allow_open_files,
    connect,
    crawl,
    latencies_s,
    memory_mb,
    n_open_files,
    p99,
    post,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

APP = "tests.load.served:app"
N_SLOW = 2_000
CUT_AFTER_S = 2.0
TEN_MB = 10_000_000


@pytest.fixture(scope="module")
def served() -> Iterator[ServedProcess]:
    allow_open_files(2 * N_SLOW)
    with serving(
        APP, MLSERVE_HEAD_TIMEOUT_S=CUT_AFTER_S, MLSERVE_BODY_TIMEOUT_S=CUT_AFTER_S
    ) as served:
        yield served


def test_two_thousand_slow_clients_are_cut_in_time_and_good_ones_notice_little(
    served: ServedProcess,
) -> None:
    n_open = n_open_files(served.process.pid)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as beside:
        beside.submit(int).result()  # the process is there
        before = latencies_s(served.port, after(1.0))
        crawling = beside.submit(crawl, served.port, N_SLOW, arriving_s=2.0, give_up_s=12.0)
        meanwhile = latencies_s(served.port, crawling.done)
        cuts = crawling.result()

    slowest_s = max(cut.lasted_s for cut in cuts)
    note("slow clients", n=N_SLOW, limit_s=CUT_AFTER_S, slowest_s=slowest_s)
    note("good clients", before_s=p99(before), meanwhile_s=p99(meanwhile))
    answers = Counter((cut.kind, cut.received[:13]) for cut in cuts)
    assert sum(answers.values()) == N_SLOW
    assert {kind for kind, _ in answers} == set(SLOW)
    assert {answer for kind, answer in answers if kind != "silent"} == {b"HTTP/1.1 408 "}
    assert {answer for kind, answer in answers if kind == "silent"} == {b""}
    assert slowest_s < CUT_AFTER_S + 1.5
    assert p99(meanwhile) < 3 * max(p99(before), 0.008)
    until(lambda: n_open_files(served.process.pid) <= n_open)


def n_chunks(served: ServedProcess) -> int:
    with connect(served.port) as connection:
        connection.sendall(HEALTH.replace(b"/health", b"/chunks"))
        return int(connection.recv(1000).rpartition(b"\r\n")[2])


def order(n_bytes: int, n_chunks: int = 1) -> bytes:
    return json.dumps({"n_bytes": n_bytes, "n_chunks": n_chunks}).encode()


def test_a_stream_that_is_read_byte_by_byte_is_not_gathered_in_memory(
    served: ServedProcess,
) -> None:
    latencies_s(served.port, after(0.1))  # what the first requests need is there
    made, memory = n_chunks(served), memory_mb(served.process.pid)
    with connect(served.port, receive_buffer=4096) as reader:
        reader.sendall(post("flood/stream", order(1000, TEN_MB // 1000)))
        stood_still, seen = after(0.5), -1
        other: list[float] = []
        while not stood_still() or n_chunks(served) != seen:
            seen = n_chunks(served)
            assert reader.recv(1)
            other += latencies_s(served.port, after(0.1))

        more_mb = memory_mb(served.process.pid) - memory
        note("slow reader", more_mb=more_mb)
        assert more_mb < 20
        assert seen - made < 9_000
        assert max(other) < 0.1


def test_large_answers_that_are_read_byte_by_byte_are_held_once_each(
    served: ServedProcess,
) -> None:
    n_readers = 4
    memory = memory_mb(served.process.pid)
    readers = [connect(served.port, receive_buffer=4096) for _ in range(n_readers)]
    for reader in readers:
        reader.sendall(post("flood/predict", order(TEN_MB)))
        assert reader.recv(1) == b"H"
    meanwhile = latencies_s(served.port, after(0.3))

    # What one answer needs while it is made comes on top: the text and its JSON.
    assert memory_mb(served.process.pid) < memory + (n_readers + 2) * TEN_MB / 1e6 + 10
    assert max(meanwhile) < 0.1
    for reader in readers:
        reader.close()


def test_a_server_without_free_descriptors_goes_on_and_recovers(served: ServedProcess) -> None:
    resource = pytest.importorskip("resource")
    pid = served.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with connect(served.port) as good:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (n_open_files(pid) + 20, limits[1]))
        crowd = [connect(served.port) for _ in range(100)]
        good.sendall(ECHO)
        answer = good.recv(1000)
        for connection in crowd:
            connection.close()
        until(lambda: n_open_files(pid) < 30)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        with connect(served.port) as late:
            late.sendall(ECHO)
            later = late.recv(1000)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert later.startswith(b"HTTP/1.1 200 ")
