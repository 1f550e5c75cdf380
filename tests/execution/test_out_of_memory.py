"""A model whose memory does not suffice for every batch, in a pipeline and in a server."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.execution.test_pipeline import Bench

from mlserve import (
    Batching,
    MLServeError,
    Model,
    ModelHandler,
    ModelServer,
    OutOfMemoryError,
)


class Tight(ModelHandler[int, int]):
    """Has memory for a sum of inputs of ten; each batch is noted."""

    memory = 10

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def infer(self, inputs: list[int]) -> list[int]:
        self.batches.append(inputs)
        if sum(inputs) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [-value for value in inputs]


def batches_of(bench: Bench) -> list[list[int]]:
    assert isinstance(bench.handler, Tight)
    return bench.handler.batches


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """Hide what other tests have left from the collections after each failure."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("small_heap")
@settings(deadline=None)
@given(st.lists(st.integers(1, 14), min_size=1, max_size=6))
def test_every_request_that_fits_alone_is_answered_whatever_its_batch(values: list[int]) -> None:
    bench = Bench(Tight)

    outcomes = bench.infer(*values)

    for value, outcome in zip(values, outcomes, strict=True):
        assert outcome == -value if value <= 10 else isinstance(outcome, OutOfMemoryError)
    assert (bench.report.n_out_of_memory > 0) == (sum(values) > 10)
    assert sum(job.payload for job in bench.report.too_large) not in range(1, 11)


def test_a_handler_that_must_not_be_repeated_is_not() -> None:
    class Once(Tight):
        idempotent = False

    bench = Bench(Once)

    outcomes = bench.infer(6, 6)

    assert [type(outcome) for outcome in outcomes] == [OutOfMemoryError] * 2
    assert batches_of(bench) == [[6, 6]]
    assert [outcome.batch_size for outcome in outcomes] == [2, 2]
    assert "even alone" not in str(outcomes[0])
    assert "even alone" in str(bench.infer(12)[0])


def test_the_tensors_of_a_failed_batch_are_gone_before_its_halves_are_run() -> None:
    alive: list[int] = []

    class Tensor:
        """Stands for what fills the memory."""

    tensors: weakref.WeakSet[Tensor] = weakref.WeakSet()

    class Keeping(Tight):
        def infer(self, inputs: list[int]) -> list[int]:
            alive.append(len(tensors))
            activations = [Tensor() for _ in inputs]
            for activation in activations:
                tensors.add(activation)
            return super().infer(inputs)

    Bench(Keeping).infer(6, 6, 6, 6)

    assert alive == [0] * len(alive)


def test_those_who_left_meanwhile_are_not_tried_again() -> None:
    bench = Bench(Tight)
    jobs = [bench.job(value) for value in (6, 6, 6, 6)]
    jobs[3].call.cancel()

    outcomes = bench.run(jobs)

    assert outcomes[:3] == [-6, -6, -6]
    assert isinstance(outcomes[3], MLServeError)
    assert batches_of(bench) == [[6, 6, 6, 6], [6, 6], [6], [6], [6]]


@pytest.mark.parametrize("hook", ["preprocess", "postprocess"])
def test_lack_of_memory_around_infer_is_named_as_such(hook: str) -> None:
    def fail(self: Any, value: Any) -> Any:
        raise MemoryError

    handler = type("Failing", (Tight,), {hook: fail})
    bench = Bench(handler)

    with pytest.raises(OutOfMemoryError):
        bench.prepare(1) if hook == "preprocess" else bench.finish(1)


def test_a_server_learns_how_much_fits_and_says_so() -> None:
    gate = threading.Event()

    class AtMostFour(ModelHandler[int, int]):
        sizes: ClassVar[list[int]] = []

        def infer(self, inputs: list[int]) -> list[int]:
            assert gate.wait(10)
            self.sizes.append(len(inputs))
            if len(inputs) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return inputs

    server = ModelServer().add("m", AtMostFour, batching=Batching(max_size=16))

    async def ask(model: Model, n: int) -> list[int]:
        return list(await asyncio.gather(*(model.predict(number) for number in range(n))))

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            first = asyncio.ensure_future(ask(model, 17))  # one alone, then sixteen
            await asyncio.sleep(0)
            gate.set()
            assert await first == list(range(17))
            AtMostFour.sizes.clear()
            assert await ask(model, 16) == list(range(16))
            assert max(AtMostFour.sizes) <= 4
            assert model.statistics().out_of_memory > 0
            assert model.statistics().splits > 0

    asyncio.run(asyncio.wait_for(scenario(), 10))
