"""Rate limits in a real Redis: the same answers as in memory, shared, and without it."""

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import Depends
from fastapi.testclient import TestClient
from tests.cli.projects import serving

from mlserve import ConfigurationError, ModelServer, rate_limit
from mlserve.access.stores import RateStore, StoreError
from mlserve.access.windows import N_PARTS, Rate, Window
from mlserve.integrations.redis import RedisStore
from mlserve.testing import EchoHandler

URL = os.environ.get("TEST_REDIS_URL", "")
PREDICT = "/v1/models/echo/predict"
HELLO = {"text": "hello"}

needs_redis = pytest.mark.skipif(
    not URL, reason="redis-server is missing (Debian: apt-get install redis-server)"
)

# What one of several processes does: asks as fast as it can, with many requests at once.
FLOOD = """
import asyncio, sys
from mlserve.access.windows import Rate
from mlserve.integrations.redis import RedisStore

async def main(url, prefix, limit, n_asked):
    store, rate = RedisStore(url, prefix=prefix, timeout_s=15), Rate(limit, 3600)
    sys.stdin.readline()
    async def ask(_):
        return (await store.take("a", rate, needs=1, cost=1)).is_admitted
    print(sum(await asyncio.gather(*map(ask, range(n_asked)))))
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


LIMITED = """
from fastapi import Depends
from mlserve import ModelServer, rate_limit
from mlserve.integrations.redis import RedisStore
from mlserve.testing import EchoHandler

store = RedisStore("{url}", prefix="test:{prefix}:", timeout_s=15)
guards = [Depends(rate_limit("400/hour", store=store))]
server = ModelServer(dependencies=guards).add("echo", EchoHandler)
"""


@asynccontextmanager
async def opened(url: str = URL, **options: float) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, prefix=f"test:{uuid.uuid4().hex}:", **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@needs_redis
def test_it_says_what_a_window_in_memory_says() -> None:
    async def both() -> None:
        rate, window = Rate(10, 86_400), Window()
        part_s = rate.period_s / N_PARTS
        async with opened() as store:
            for needs, cost in ((4, 4), (1, 0), (6, 6), (1, 1), (11, 11), (0, 25), (1, 0), (0, 0)):
                theirs = await store.take("a", rate, needs=needs, cost=cost)
                ours = window.take(rate, 0.0, needs=needs, cost=cost)

                assert (theirs.is_admitted, theirs.remaining) == (ours.is_admitted, ours.remaining)
                for one, other in (
                    (theirs.retry_after_s, ours.retry_after_s),
                    (theirs.reset_s, ours.reset_s),
                ):
                    assert one == other or 0 <= other - one <= part_s

    asyncio.run(both())


@needs_redis
def test_the_window_slides_on_by_the_clock_of_redis() -> None:
    async def slide() -> list[float]:
        rate = Rate(2, 1)
        async with opened() as store:
            first = [await store.take("a", rate, needs=1, cost=1) for _ in range(3)]
            waited_s = first[2].retry_after_s
            started = asyncio.get_running_loop().time()
            async with asyncio.timeout(10):
                while not (await store.take("a", rate, needs=1, cost=0)).is_admitted:
                    pass
            took_s = asyncio.get_running_loop().time() - started
        assert [reading.is_admitted for reading in first] == [True, True, False]
        return [took_s, waited_s, first[1].reset_s]

    took_s, waited_s, reset_s = asyncio.run(slide())

    assert took_s > waited_s - 0.01
    assert 0.9 < waited_s <= 1 + 1 / N_PARTS
    assert 0.9 < reset_s <= 1 + 1 / N_PARTS


@needs_redis
def test_a_key_is_forgotten_when_its_period_is_over() -> None:
    async def ttl() -> tuple[int, list[str]]:
        async with opened() as store:
            await store.take("a", Rate(5, 60), needs=1, cost=1)
            await store.take("b", Rate(5, 60), needs=1, cost=0)
            client = store._client
            names = [name.decode() async for name in client.scan_iter(f"{store._prefix}*")]
            return await client.pttl(names[0]), [name.rpartition(":")[2] for name in names]

    left_ms, names = asyncio.run(ttl())

    assert names == ["a"]
    assert 55_000 < left_ms <= 61_000


@needs_redis
@pytest.mark.slow
def test_several_processes_at_once_get_exactly_the_limit_together() -> None:
    limit, n_processes, n_asked = 1000, 4, 600
    prefix = f"test:{uuid.uuid4().hex}:"
    arguments = [sys.executable, "-c", FLOOD, URL, prefix, str(limit), str(n_asked)]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(n_processes)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        counts = [int(process.communicate(timeout=45)[0]) for process in processes]

    assert sum(counts) == limit


@needs_redis
@pytest.mark.slow
@pytest.mark.timeout(90)
def test_200_clients_of_two_http_processes_get_exactly_the_limit(tmp_path: Path) -> None:
    n_clients, n_each, limit = 200, 5, 400
    (tmp_path / "limited.py").write_text(LIMITED.format(url=URL, prefix=uuid.uuid4().hex))

    async def ask_all(base_url: str) -> Counter[int]:
        bounds = httpx2.Limits(max_connections=n_clients)
        async with httpx2.AsyncClient(base_url=base_url, timeout=60, limits=bounds) as client:

            async def ask() -> list[int]:
                answers = [await client.post(PREDICT, json=HELLO) for _ in range(n_each)]
                return [answer.status_code for answer in answers]

            statuses = await asyncio.gather(*(ask() for _ in range(n_clients)))
        return Counter(itertools.chain.from_iterable(statuses))

    with serving(tmp_path, "limited:server", "--workers", "2") as served:
        host, port = served.address()
        counts = asyncio.run(ask_all(f"http://{host}:{port}"))

    assert counts == {200: limit, 429: n_clients * n_each - limit}


@needs_redis
def test_two_servers_share_a_limit_and_close_their_connections() -> None:
    prefix = f"test:{uuid.uuid4().hex}:"

    def server() -> ModelServer:
        guard = Depends(rate_limit("2/hour", store=RedisStore(URL, prefix=prefix)))
        return ModelServer(dependencies=[guard]).add("echo", EchoHandler)

    with TestClient(server().build()) as one, TestClient(server().build()) as other:
        statuses = [client.post(PREDICT, json=HELLO).status_code for client in (one, other) * 2]
        answer = other.post(PREDICT, json=HELLO)

    assert statuses == [200, 200, 429, 429]
    assert answer.headers["ratelimit"].startswith('"2/hour";r=0;t=36')
    assert int(answer.headers["retry-after"]) > 3500


@needs_redis
def test_another_event_loop_gets_connections_of_its_own() -> None:
    store, rate = RedisStore(URL, prefix=f"test:{uuid.uuid4().hex}:"), Rate(1, 60)

    async def ask() -> bool:
        try:
            return (await store.take("a", rate, needs=1, cost=1)).is_admitted
        finally:
            await store.close()

    assert [asyncio.run(ask()) for _ in range(2)] == [True, False]


@contextlib.contextmanager
def redis_at(port: int) -> Iterator[None]:
    process = subprocess.Popen(
        ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""],  # noqa: S607
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any("eady to accept connections" in line for line in process.stdout)
        yield
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@needs_redis
@pytest.mark.slow
def test_a_redis_that_goes_and_comes_back_costs_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_redis = free_port()
    monkeypatch.setattr("mlserve.integrations.redis._PAUSE_S", 0.0)
    store = RedisStore(f"redis://127.0.0.1:{own_redis}/0")
    guard = Depends(rate_limit("3/hour", store=store))
    server = ModelServer().add("echo", EchoHandler, dependencies=[guard])

    with TestClient(server.build()) as client:

        def ask() -> tuple[int, bool, bool]:
            answer = client.post(PREDICT, json=HELLO)
            has_trouble = "troubles" in client.get("/ready").json()
            return answer.status_code, "ratelimit" in answer.headers, has_trouble

        before = ask()
        with redis_at(own_redis):
            served = [ask() for _ in range(4)]
        gone = ask()
        with redis_at(own_redis):
            again = ask()

    assert before == (200, False, True)
    assert served == [(200, True, False)] * 3 + [(429, True, False)]
    assert gone == (200, False, True)
    assert again == (200, True, False)


def test_a_server_that_never_answers_is_waited_for_once() -> None:
    async def ask() -> tuple[float, list[str]]:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with opened(
                f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_s=0.05
            ) as store:
                reasons = []
                started = asyncio.get_running_loop().time()
                for _ in range(50):
                    try:
                        await store.take("a", Rate(1, 60), needs=1, cost=1)
                    except StoreError as exc:
                        reasons.append(str(exc))
                return asyncio.get_running_loop().time() - started, reasons

    took_s, reasons = asyncio.run(ask())

    assert len(reasons) == 50
    assert "TimeoutError" in reasons[0]
    assert set(reasons[1:]) == {"Redis was not asked again yet."}
    assert took_s < 2


def test_it_is_a_store_and_shows_no_password() -> None:
    store = RedisStore("redis://user:canary@redis.example:6380/2")

    assert isinstance(store, RateStore)
    assert repr(store) == "<RedisStore redis://redis.example:6380/2>"


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://canary@localhost", "redis://canary@localhost:port/0"]
)
def test_a_malformed_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must look like") as caught:
        RedisStore(url)

    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"timeout_s": float("inf")}, {"max_connections": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        RedisStore("redis://localhost", **options)  # type: ignore[arg-type]  # as is tested


@pytest.mark.slow
def test_without_the_package_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['redis'] = None; import mlserve.integrations.redis"

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=15, check=False
    )

    assert done.returncode == 1
    assert "pip install 'mlserve[redis]'" in done.stderr
