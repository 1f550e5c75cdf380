"""A thread that has ended a batch goes on with the next one while the event loop is busy."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.http.waiting import until

from mlserve import (
    Batching,
    DeadlineExceededError,
    Limits,
    Model,
    ModelHandler,
    ModelServer,
    Replicas,
)
from mlserve.execution.pool import ReplicaPool
from mlserve.lane import Lane

WAIT_S = 10


class Gated(ModelHandler[str, str]):
    """Runs each batch when it may; notes what was begun."""

    def __init__(self) -> None:
        self.begun: list[list[str]] = []
        self.may_go = threading.Semaphore(0)
        self.n_checks = 0

    def infer(self, inputs: list[str]) -> list[str]:
        self.begun.append(inputs)
        assert self.may_go.acquire(timeout=WAIT_S)
        if "break" in inputs:
            raise RuntimeError("It broke.")
        return inputs

    def health(self) -> None:
        self.n_checks += 1


class Scene:
    """A model, and requests to it."""

    def __init__(self, handler: Gated, model: Model) -> None:
        self.handler = handler
        self.model = model
        self.asked: list[asyncio.Future[str]] = []

    async def ask(self, *texts: str, timeout_s: float = WAIT_S) -> None:
        """Ask for each, and see them where they wait."""
        self.asked += [
            asyncio.ensure_future(self.model.predict(text, timeout_s=timeout_s)) for text in texts
        ]
        for _ in range(5):
            await asyncio.sleep(0)

    def go(self, *expected: list[str]) -> None:
        """Let a batch end while the loop stands still, and see what has been begun by then."""
        self.handler.may_go.release()
        until(lambda: self.handler.begun == list(expected), WAIT_S)

    async def answers(self) -> list[Any]:
        self.handler.may_go.release(100)
        return await asyncio.gather(*self.asked, return_exceptions=True)


def pool_of(model: Model) -> ReplicaPool:
    lane = model.engine._lane
    assert isinstance(lane, Lane)
    return lane.pool


def play(
    scenario: Callable[[Scene], Awaitable[None]], *, max_size: int = 2, n_replicas: int = 1
) -> None:
    handler = Gated()
    server = ModelServer().add(
        "m",
        handler if n_replicas == 1 else (lambda: handler),
        batching=Batching(max_size=max_size),
        replicas=Replicas(count=n_replicas),
        limits=Limits(max_queue_size=100),
    )

    async def main() -> None:
        async with server.started():
            try:
                await scenario(Scene(handler, server.model_for("m")))
            finally:
                handler.may_go.release(100)

    asyncio.run(asyncio.wait_for(main(), 2 * WAIT_S))


def test_the_model_does_not_wait_for_the_loop_between_full_batches() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.ask("a", "b")
        until(lambda: scene.handler.begun == [["a", "b"]], WAIT_S)
        await scene.ask("c", "d", "e", "f")

        scene.go(["a", "b"], ["c", "d"])

        assert await scene.answers() == ["a", "b", "c", "d", "e", "f"]
        assert scene.handler.begun[2:] == [["e", "f"]]

    play(scenario)


def test_a_model_without_batches_does_not_wait_either() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.ask("a")
        until(lambda: scene.handler.begun == [["a"]], WAIT_S)
        await scene.ask("b", "c")

        scene.go(["a"], ["b"])

        assert await scene.answers() == ["a", "b", "c"]

    play(scenario, max_size=1)


def test_whoever_expires_amid_what_is_laid_out_is_not_run() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.ask("a")
        await scene.ask("b", timeout_s=0.01)
        await scene.ask("c", "d")
        until(lambda: scene.handler.begun == [["a"]], WAIT_S)
        (late,) = await asyncio.gather(scene.asked[1], return_exceptions=True)
        assert isinstance(late, DeadlineExceededError)
        assert late.stage == "queue"
        await scene.ask()

        scene.go(["a"], ["c", "d"])

        assert [a for a in await scene.answers() if isinstance(a, str)] == ["a", "c", "d"]

    play(scenario)


def test_whoever_expires_in_what_was_taken_up_was_in_the_model() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.ask("a", "b")
        until(lambda: scene.handler.begun == [["a", "b"]], WAIT_S)
        await scene.ask("c", "d", timeout_s=0.05)
        scene.go(["a", "b"], ["c", "d"])

        late = await asyncio.gather(*scene.asked[2:], return_exceptions=True)

        assert [getattr(error, "stage", error) for error in late] == ["infer", "infer"]
        assert scene.model.statistics().running == 2
        assert (await scene.answers())[:2] == ["a", "b"]

    play(scenario)


def test_nothing_is_taken_up_after_a_batch_that_has_failed() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.ask("break")
        until(lambda: scene.handler.begun == [["break"]], WAIT_S)
        await scene.ask("c", "d")
        scene.handler.may_go.release()
        held = threading.Event()
        held.wait(0.05)  # the loop stands still, and nothing may happen
        assert scene.handler.begun == [["break"]]

        _, *others = await scene.answers()

        assert others == ["c", "d"]

    play(scenario)


def test_a_check_that_waits_has_its_turn_before_what_was_taken_up() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.ask("a", "b")
        until(lambda: scene.handler.begun == [["a", "b"]], WAIT_S)
        await scene.ask("c", "d")
        checked = asyncio.ensure_future(pool_of(scene.model).check_health())
        await asyncio.sleep(0)
        n_checks = scene.handler.n_checks

        scene.go(["a", "b"], ["c", "d"])

        assert scene.handler.n_checks == n_checks + 1
        assert await scene.answers() == ["a", "b", "c", "d"]
        await checked

    play(scenario)


@pytest.mark.parametrize("n_replicas", [1, 2])
def test_what_was_taken_up_is_answered_when_the_server_stops(n_replicas: int) -> None:
    async def scenario(scene: Scene) -> None:
        first = [f"{n}" for n in range(2 * n_replicas)]
        await scene.ask(*first)
        until(lambda: len(scene.handler.begun) == n_replicas, WAIT_S)
        await scene.ask("c", "d")
        scene.handler.may_go.release(n_replicas)
        until(lambda: ["c", "d"] in scene.handler.begun, WAIT_S)

        scene.handler.may_go.release(100)
        stopping = asyncio.ensure_future(scene.model.engine.stop(5))

        assert await scene.answers() == [*first, "c", "d"]
        await stopping

    play(scenario, n_replicas=n_replicas)
