"""How long a model's end may take: hooks in flight, then `unload`."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mlserve import ModelHandler, ModelServer
from mlserve.engine import Engine
from mlserve.testing import FakeClock


class Listed(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


def with_engine(then: Callable[[Engine, FakeClock], Awaitable[float]]) -> float:
    """Run something with an engine that serves, and its clock."""
    clock = FakeClock()
    engine = Engine(ModelServer().add("m", Listed).model_for("m").engine.spec, clock)

    async def scenario() -> float:
        await engine.start(load_timeout_s=None, health_period_s=30)
        found = await then(engine, clock)
        await engine.stop(0.0)
        return found

    return asyncio.run(asyncio.wait_for(scenario(), 10))


@pytest.mark.parametrize(
    ("drain_s", "drained_for_s", "unload_s"),
    [
        (30.0, 10.0, 20.0),  # what is left of the drain
        (30.0, 30.0, 5.0),  # a little more where nothing is: the end is not put off twice
        (2.0, 2.0, 2.0),
        (0.1, 0.1, 1.0),
        (0.0, 10.0, 1.0),  # the drain was ended by hand
        (float("inf"), 10.0, float("inf")),
    ],
)
def test_hooks_have_what_is_left_of_the_drain_and_a_little_more(
    drain_s: float, drained_for_s: float, unload_s: float
) -> None:
    async def drain(engine: Engine, clock: FakeClock) -> float:
        engine.refuse_new_work()
        clock.advance(drained_for_s)
        return engine._unload_s(engine._lane, drain_s)

    assert with_engine(drain) == unload_s


def test_the_time_counts_from_the_first_refusal() -> None:
    async def drain_twice(engine: Engine, clock: FakeClock) -> float:
        engine.refuse_new_work()
        clock.advance(10.0)
        await engine.drain(30.0)
        clock.advance(5.0)
        return engine._unload_s(engine._lane, 30.0)

    assert with_engine(drain_twice) == 15.0


def test_a_load_that_still_runs_has_five_seconds_at_most() -> None:
    engine = Engine(ModelServer().add("m", Listed).model_for("m").engine.spec, FakeClock())

    assert engine._unload_s(engine._lane, 30.0) == 5.0
