"""Servers and the use of models as users write them, for a strict type checker."""

from functools import partial
from typing import Annotated

from fastapi import Depends, FastAPI
from tests.typing.sync_handlers import Full, Plain, Review, Verdict

from mlserve import (
    Batching,
    Cors,
    Limits,
    Model,
    ModelHandler,
    ModelServer,
    Replicas,
    Restart,
    ServerSettings,
    Statistics,
    handler,
)

__all__ = ["Scaled", "make_app", "make_server"]


class Scaled(ModelHandler[float, float]):
    """A handler with an argument of its own."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def infer(self, inputs: list[float]) -> list[float]:
        return [self.factor * value for value in inputs]


def load() -> dict[str, float]:
    return {"factor": 2.0}


def infer(loaded: dict[str, float], inputs: list[float]) -> list[float]:
    return [loaded["factor"] * value for value in inputs]


def make_server() -> ModelServer:
    """Add a handler in each way that there is."""
    server = ModelServer(
        title="Reviews",
        settings=ServerSettings(drain_s=1.0, cors=Cors(allow_origins=("https://a.example",))),
    )
    server.add("plain", Plain)
    server.add("scaled", partial(Scaled, 3.0)).add("instance", Scaled(2.0))
    server.add("functions", handler(request=float, response=float, load=load, infer=infer))
    return server.add(
        "reviews",
        Full,
        version="v2",
        batching=Batching(max_size=4, max_wait_s=0.01, max_cost=64, padded=True),
        replicas=Replicas(devices=["cpu"], restart=Restart(failures=2)),
        limits=Limits(timeout_s=5.0, max_queue_size=16),
    )


def make_app(server: ModelServer) -> FastAPI:
    """Write an endpoint of one's own on a model's queue."""
    app = server.build()

    @app.post("/reviews")
    async def review(
        request: Review, model: Annotated[Model, Depends(server.model("reviews"))]
    ) -> Verdict:
        verdict = await model.predict(request, timeout_s=1.0, priority=2)
        assert isinstance(verdict, Verdict)
        return verdict

    @app.get("/words")
    async def words(model: Annotated[Model, Depends(server.model("reviews"))]) -> list[Verdict]:
        return [chunk async for chunk in model.stream(Review(text="good"))]

    return app


async def without_http(server: ModelServer) -> Statistics:
    """Use a model without any HTTP."""
    async with server.started():
        model = server.model_for("plain")
        await model.predict(1.0)
        await model.reload()
        return model.statistics()
