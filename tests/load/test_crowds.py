"""Ten thousand clients that say nothing: they cost little, and disturb nobody."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.faults.processes import ServedProcess, serving
from tests.figures import note
from tests.http.waiting import until
from tests.load.crowd import (
    ECHO,
    after,
    allow_open_files,
    connect,
    latencies_s,
    memory_mb,
    n_open_files,
    p99,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

N_IDLE = 10_000
AT_ONCE = 100


@contextmanager
def crowded(served: ServedProcess) -> Iterator[None]:
    """Keep thousands of connections open that have been answered once."""
    with ExitStack() as crowd:
        for _ in range(N_IDLE // AT_ONCE):
            group = [crowd.enter_context(connect(served.port)) for _ in range(AT_ONCE)]
            for connection in group:
                connection.sendall(ECHO)
            assert all(connection.recv(1000).startswith(b"HTTP/1.1 200 ") for connection in group)
        yield


def test_ten_thousand_idle_connections_cost_little_and_leave_nothing_behind() -> None:
    allow_open_files(N_IDLE + 1000)
    with serving("tests.load.served:app", "--timeout-keep-alive", "60") as served:
        pid = served.process.pid
        before = latencies_s(served.port, after(0.5))
        memory, n_open = memory_mb(pid), n_open_files(pid)
        with crowded(served):
            with_crowd, n_with_crowd = memory_mb(pid), n_open_files(pid)
            meanwhile = latencies_s(served.port, after(0.5))
        until(lambda: n_open_files(pid) <= n_open)
        with crowded(served):
            with_the_next = memory_mb(pid)
        until(lambda: n_open_files(pid) <= n_open)

    note("idle", n=n_with_crowd, more_mb=with_crowd - memory, meanwhile_s=p99(meanwhile))
    assert n_with_crowd >= N_IDLE
    assert with_crowd - memory < 200
    assert with_the_next - with_crowd < 20
    assert p99(meanwhile) < 3 * max(p99(before), 0.008)
