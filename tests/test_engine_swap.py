"""Reloading twenty times under load: nothing is lost, and every answer is of one version only."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count, pairwise
from typing import ClassVar

import pytest

from mlserve import Batching, Model, ModelHandler, ModelServer, Replicas

N_SWAPS = 20
N_CLIENTS = 8


class Versioned(ModelHandler[str, list[int]]):
    """Answers with the versions that preprocessed, ran and postprocessed a request."""

    loaded: ClassVar[Counter[int]]
    unloaded: ClassVar[Counter[int]]

    def __init__(self, version: int, broken: str = "") -> None:
        self.version, self.broken = version, broken

    def load(self) -> None:
        self.loaded[self.version] += 1
        if self.broken == "load":
            raise OSError("no weights")

    def examples(self) -> list[str]:
        return ["example"]

    def preprocess(self, request: str) -> list[int]:
        return [self.version]

    def infer(self, inputs: list[list[int]]) -> list[list[int]]:
        if self.broken == "warmup":
            raise RuntimeError
        time.sleep(0.001)  # stands for the model: requests gather meanwhile
        return [[*seen, self.version] for seen in inputs]

    def postprocess(self, output: list[int]) -> list[int]:
        return [*output, self.version]

    def stream(self, item: list[int]) -> Iterator[list[int]]:
        for _ in range(5):
            time.sleep(0.001)  # as above
            yield [*item, self.version]

    def unload(self) -> None:
        self.unloaded[self.version] += 1


def versioned() -> type[Versioned]:
    """Make a handler class that counts for one test only."""
    return type("VersionedHere", (Versioned,), {"loaded": Counter(), "unloaded": Counter()})


async def ask(model: Model, is_over: asyncio.Event) -> list[int]:
    """Ask one request after another, and give the version that answered each."""
    versions = []
    while not is_over.is_set():
        seen = await model.predict("a")
        assert len(seen) == 3
        assert len(set(seen)) == 1, f"an answer of several versions: {seen}"
        versions.append(seen[0])
    return versions


async def read(model: Model, is_over: asyncio.Event) -> list[int]:
    """Read one stream after another, and give the version that made each."""
    versions = []
    while not is_over.is_set():
        chunks = [tuple(chunk) async for chunk in model.stream("a")]
        assert len(chunks) == 5
        assert len({version for chunk in chunks for version in chunk}) == 1
        versions.append(chunks[0][0])
    return versions


@asynccontextmanager
async def asked(model: Model) -> AsyncIterator[list[list[int]]]:
    """Ask all the time, side by side; afterwards, the versions are there by client."""
    versions: list[list[int]] = []
    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(ask(model, is_over)) for _ in range(N_CLIENTS)]
        clients += [group.create_task(read(model, is_over)) for _ in range(N_CLIENTS // 2)]
        yield versions
        is_over.set()
    versions += [client.result() for client in clients]


@pytest.mark.parametrize("n_replicas", [1, 2])
def test_twenty_swaps_under_load_lose_nothing_and_mix_nothing(n_replicas: int) -> None:
    handler = versioned()
    server = ModelServer().add(
        "m",
        partial(handler, 0),
        batching=Batching(max_size=4),
        replicas=Replicas(count=n_replicas),
    )

    async def scenario() -> list[list[int]]:
        async with server.started():
            model = server.model_for("m")
            async with asked(model) as versions:
                for version in range(1, N_SWAPS + 1):
                    await model.reload(partial(handler, version))
                    assert (await model.predict("after"))[0] == version
            assert model.statistics().in_flight == 0
            return versions

    by_client = asyncio.run(asyncio.wait_for(scenario(), 15))

    assert {version for versions in by_client for version in versions} >= set(range(1, N_SWAPS))
    assert all(a <= b for versions in by_client for a, b in pairwise(versions))
    expected = dict.fromkeys(range(N_SWAPS + 1), n_replicas)
    assert handler.loaded == handler.unloaded == expected


@pytest.mark.parametrize("broken", ["load", "warmup"])
def test_swaps_that_fail_under_load_keep_the_old_version(broken: str) -> None:
    handler = versioned()
    numbers = count(1)
    server = ModelServer().add("m", partial(handler, 0))

    async def scenario() -> tuple[list[list[int]], list[BaseException | None]]:
        async with server.started():
            model = server.model_for("m")
            async with asked(model) as versions:
                swaps = [
                    await asyncio.gather(
                        model.reload(partial(handler, next(numbers), broken)),
                        return_exceptions=True,
                    )
                    for _ in range(N_SWAPS)
                ]
            assert model.state == "ready"
            return versions, [error for (error,) in swaps]

    by_client, errors = asyncio.run(asyncio.wait_for(scenario(), 15))

    assert all(isinstance(error, Exception) for error in errors)
    assert {version for versions in by_client for version in versions} == {0}
    assert handler.loaded == handler.unloaded == dict.fromkeys(range(N_SWAPS + 1), 1)
