"""One key cannot starve the others: counted in requests that are served first, over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal

import httpx2
import pytest
from fastapi import Depends
from tests.http.ranked import BATCH_SIZE, Ranked, key_of
from tests.http.waiting import until

from mlserve import Limits, Model, ModelServer, Replicas, api_keys
from mlserve.errors import OverloadedError
from mlserve.testing import running

WAIT_S = 15.0
N_HEAVY = 60
LIGHT = [f"light-{number}" for number in range(9)]
KEYS = api_keys([f"{name}={key_of(name)}" for name in ("heavy", *LIGHT)])

Ask = Callable[..., Coroutine[Any, Any, httpx2.Response]]


@contextmanager
def ranked(
    placement: Literal["thread", "process"] = "thread", *, has_keys: bool = True, **limits: Any
) -> Iterator[tuple[Model, str]]:
    """Run the model; give it and its URL."""
    server = ModelServer().add(
        "ranked",
        Ranked,
        replicas=Replicas(placement=placement, max_streams=1),
        limits=Limits(**limits),
        dependencies=[Depends(KEYS)] if has_keys else [],
    )
    with running(server) as client:
        yield server.model_for("ranked"), f"{client.base_url}/v1/models/ranked/"


def run(url: str, scenario: Callable[[Ask], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        bounds = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(limits=bounds, timeout=WAIT_S) as http:

            async def ask(key: str | None, order: str, way: str = "predict") -> httpx2.Response:
                headers = {"X-API-Key": key_of(key)} if key is not None else {}
                return await http.post(url + way, json=order, headers=headers)

            return await scenario(ask)

    return asyncio.run(main())


async def with_backlog(
    model: Model, ask: Ask, path: Path, first: list[str | None], then: list[str | None]
) -> list[int]:
    """Give the ranks of the last requests, which come once the first ones wait."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_ask(ask, first[0], f"hold {path}"))
        await asyncio.to_thread(until, path.exists)
        waiting = [group.create_task(_ask(ask, key, "")) for key in first]
        await asyncio.to_thread(until, lambda: model.statistics().queued == len(waiting))
        asked = [group.create_task(_ask(ask, key, "")) for key in then]
        await asyncio.to_thread(
            until, lambda: model.statistics().queued == len(waiting) + len(asked)
        )
        path.with_suffix(".go").touch()
    return [task.result() for task in asked]


async def _ask(ask: Ask, key: str | None, order: str) -> int:
    answer = await ask(key, order)
    assert answer.status_code == 200, answer.text
    return int(answer.json()[0])


async def _wait(ask: Ask, key: str) -> int:
    answer = await ask(key, "")
    assert answer.status_code == 200, answer.text
    return int(answer.json()[1])


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["thread", "process"])
def test_nine_light_keys_do_not_wait_behind_the_backlog_of_a_heavy_one(
    placement: Literal["thread", "process"], tmp_path: Path
) -> None:
    with ranked(placement) as (model, url):
        ranks = run(
            url,
            lambda ask: with_backlog(model, ask, tmp_path / "it", ["heavy"] * N_HEAVY, [*LIGHT]),
        )

    # They have a turn each. A few of the heavy one's go first where some are still on their way.
    assert max(ranks) <= N_HEAVY / 2


def test_without_keys_the_older_request_goes_first(tmp_path: Path) -> None:
    with ranked(has_keys=False) as (model, url):
        ranks = run(
            url, lambda ask: with_backlog(model, ask, tmp_path / "it", [None] * 20, [None] * 3)
        )

    assert sorted(ranks) == [21, 22, 23]


@pytest.mark.slow
def test_light_keys_wait_a_few_times_as_long_beside_a_heavy_key_as_without_it() -> None:
    """By the number of requests that are served before it once it is here."""

    async def light(ask: Ask, key: str) -> list[int]:
        return [await _wait(ask, key) for _ in range(12)]

    async def heavy(ask: Ask) -> None:
        while True:
            await _wait(ask, "heavy")

    async def scenario(ask: Ask, n_heavy: int) -> float:
        flood = [asyncio.ensure_future(heavy(ask)) for _ in range(n_heavy)]
        waits = await asyncio.gather(*(light(ask, key) for key in LIGHT))
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        return median(wait for row in waits for wait in row)

    with ranked() as (_, url):
        alone = run(url, lambda ask: scenario(ask, 0))
        beside = run(url, lambda ask: scenario(ask, 64))

    assert beside <= 3 * max(alone, BATCH_SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["thread", "process"])
def test_a_heavy_key_is_refused_while_others_still_find_a_place(
    placement: Literal["thread", "process"], tmp_path: Path
) -> None:
    path = tmp_path / "it"

    async def scenario(ask: Ask, model: Model) -> tuple[httpx2.Response, list[int]]:
        async with asyncio.TaskGroup() as group:
            group.create_task(_ask(ask, "heavy", f"hold {path}"))
            await asyncio.to_thread(until, path.exists)
            for _ in range(14):
                group.create_task(_ask(ask, "heavy", ""))
            await asyncio.to_thread(until, lambda: model.statistics().queued == 14)
            refused = await ask("heavy", "")
            others = [group.create_task(_ask(ask, key, "")) for key in LIGHT[:2]]
            await asyncio.to_thread(until, lambda: model.statistics().queued == 16)
            full = await ask(LIGHT[2], "")
            path.with_suffix(".go").touch()
        assert full.json()["error"]["code"] == "queue_full"
        return refused, [task.result() for task in others]

    with ranked(placement, max_queue_size=16) as (model, url):
        refused, ranks = run(url, lambda ask: scenario(ask, model))

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
    assert max(ranks) < 14


def test_a_light_key_is_not_refused_for_what_a_heavy_one_has_waiting(tmp_path: Path) -> None:
    path = tmp_path / "it"

    async def scenario(ask: Ask, model: Model) -> None:
        for _ in range(20):  # so that it is known what batches take
            await _ask(ask, "heavy", "")
        async with asyncio.TaskGroup() as group:
            group.create_task(_ask(ask, "heavy", f"hold {path}"))
            await asyncio.to_thread(until, path.exists)
            for _ in range(64):
                group.create_task(_ask(ask, "heavy", ""))
            await asyncio.to_thread(until, lambda: model.statistics().queued == 64)
            lane = model.engine._lane
            budget_s = 10 * lane._admission.wait_s(4)
            heavy, light = (
                lane.refusal(budget_s=budget_s, left_s=budget_s, priority=0, tenant=tenant)
                for tenant in ("heavy", "light")
            )
            assert isinstance(heavy, OverloadedError)
            assert light is None
            path.with_suffix(".go").touch()

    with ranked() as (model, url):
        run(url, lambda ask: scenario(ask, model))


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["thread", "process"])
def test_keys_take_turns_at_the_places_for_streams(
    placement: Literal["thread", "process"], tmp_path: Path
) -> None:
    path = tmp_path / "it"

    async def scenario(ask: Ask, model: Model) -> list[str]:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask("heavy", f"hold {path}", "stream"))
            await asyncio.to_thread(until, path.exists)
            for _ in range(N_HEAVY):
                group.create_task(ask("heavy", "", "stream"))
            await asyncio.to_thread(until, lambda: model.statistics().queued == N_HEAVY)
            asked = [group.create_task(ask(key, "", "stream")) for key in LIGHT]
            await asyncio.to_thread(
                until, lambda: model.statistics().queued == N_HEAVY + len(LIGHT)
            )
            path.with_suffix(".go").touch()
        return [task.result().text.splitlines()[0] for task in asked]

    with ranked(placement) as (model, url):
        first_events = run(url, lambda ask: scenario(ask, model))

    assert max(int(event.removeprefix("data: ")) for event in first_events) <= N_HEAVY / 2
