"""A replica that is judged by its examples while it is replaced or unloaded."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, ClassVar

import pytest
from tests.http.waiting import until

from mlserve import (
    Batching,
    DrainingError,
    Model,
    ModelError,
    ModelHandler,
    ModelServer,
    Replicas,
    Restart,
    ServerSettings,
)

TRIED_AGAIN_S = 0.02
EXAMPLE = 0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


class Ailing(ModelHandler[int, int]):
    """Its first copy can break and fall ill; what each copy does is noted."""

    batching = Batching(max_size=1)
    restart = Restart(failures=1, backoff_s=TRIED_AGAIN_S, max_backoff_s=TRIED_AGAIN_S)
    replicas = Replicas(restart=restart)
    notes: ClassVar[list[str]]
    is_broken: ClassVar[threading.Event]
    is_ill: ClassVar[threading.Event]

    def load(self) -> None:
        self.number = self.count("load") + 1
        self.notes.append("load")

    def examples(self) -> list[int]:
        return [EXAMPLE]

    def infer(self, inputs: list[int]) -> Any:
        self.notes.append(f"infer in {self.number}")
        if self.is_broken.is_set():
            raise OSError("the device does not answer")
        return inputs

    async def health(self) -> None:
        if self.is_ill.is_set() and self.number == 1:
            raise OSError("the device is gone")

    async def unload(self) -> None:
        self.notes.append(f"unload {self.number}")

    def count(self, note: str) -> int:
        return self.notes.count(note)


def serve(handler: type[Ailing]) -> tuple[type[Ailing], ModelServer]:
    fields = {"notes": [], "is_broken": threading.Event(), "is_ill": threading.Event()}
    fresh: type[Ailing] = type("Fresh", (handler,), fields)
    server = ModelServer(settings=ServerSettings(health_period_s=0.01)).add("m", fresh)
    return fresh, server


async def state(model: Model, wanted: str) -> None:
    await asyncio.to_thread(until, lambda: model.state == wanted)


def test_a_replica_that_is_replaced_is_not_brought_back_by_its_examples() -> None:
    class SlowlyUnloaded(Ailing):
        async def unload(self) -> None:
            self.is_broken.clear()
            await asyncio.sleep(5 * TRIED_AGAIN_S)  # its examples would pass meanwhile
            await super().unload()

    handler, server = serve(SlowlyUnloaded)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            handler.is_broken.set()
            with pytest.raises(ModelError):
                await model.predict(1)
            await state(model, "failed")
            handler.is_ill.set()
            await state(model, "ready")
            assert await model.predict(5) == 5
            assert model.statistics().replicas == 1

    run(scenario())

    assert handler.notes.count("load") == 2
    assert "infer in 1" not in handler.notes[handler.notes.index("unload 1") :]


def test_examples_that_hang_are_given_up_before_their_replica_is_unloaded() -> None:
    class Hanging(Ailing):
        async def infer(self, inputs: list[int]) -> list[int]:
            if not self.is_broken.is_set():
                return inputs
            if inputs != [EXAMPLE]:
                raise OSError("the device does not answer")
            self.notes.append("trial begins")
            try:
                await asyncio.Event().wait()
            finally:
                self.notes.append("trial ends")
            return inputs

    handler, server = serve(Hanging)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            handler.is_broken.set()
            with pytest.raises(ModelError):
                await model.predict(1)
            await asyncio.to_thread(until, lambda: "trial begins" in handler.notes)
            handler.is_broken.clear()
            handler.is_ill.set()
            await asyncio.to_thread(until, lambda: handler.notes.count("load") == 2)
            await state(model, "ready")
            assert await model.predict(5) == 5

    run(scenario())

    assert handler.notes[1:4] == ["trial begins", "trial ends", "unload 1"]


def test_a_replica_that_fails_in_its_last_batch_is_not_tried_once_it_is_unloaded() -> None:
    class Held(Ailing):
        may_end = threading.Event()

        def infer(self, inputs: list[int]) -> Any:
            if self.is_broken.is_set() and inputs != [EXAMPLE]:
                self.notes.append("begun")
                assert self.may_end.wait(10)
            return super().infer(inputs)

    handler, server = serve(Held)

    async def scenario() -> None:
        async with server.started():
            model = server.model_for("m")
            handler.is_broken.set()
            late = asyncio.ensure_future(model.predict(1))
            await asyncio.to_thread(until, lambda: "begun" in handler.notes)
            closing = asyncio.ensure_future(model.engine.stop(drain_s=0.01))
            with pytest.raises(DrainingError):
                await late
            await asyncio.to_thread(until, lambda: model.statistics().replicas == 0)
            Held.may_end.set()
            await closing
            await asyncio.sleep(5 * TRIED_AGAIN_S)  # it would be tried meanwhile

    run(scenario())

    assert handler.notes[-1] == "unload 1"
