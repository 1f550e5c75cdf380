"""
Models in a FastAPI application that exists already, with its own lifespan, routes and errors.

    mlserve run 04_own_app:app                   (or: uvicorn 04_own_app:app)
    curl --json '4' http://127.0.0.1:8000/ml/v1/models/square/predict
    curl 'http://127.0.0.1:8000/area?side=4'
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx2
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from mlserve import InvalidInputError, MLServeError, Model, ModelHandler, ModelServer
from mlserve.testing import running


class Square(ModelHandler[float, float]):
    def examples(self) -> list[float]:
        return [2.0]

    def preprocess(self, request: float) -> float:
        if request < 0:
            raise InvalidInputError("A side is not negative.")
        return request

    def infer(self, inputs: list[float]) -> list[float]:
        return [value * value for value in inputs]


server = ModelServer().add("square", Square)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.unit = "m²"  # stands for what the application opens at its start
    yield


app = FastAPI(title="Gardens", lifespan=lifespan)


@app.exception_handler(MLServeError)
async def say_what(request: Request, error: MLServeError) -> JSONResponse:
    """What the application's own endpoints answer when the model fails or refuses."""
    return JSONResponse({"oops": str(error)}, error.status)


@app.get("/area")
async def area(
    request: Request, side: float, model: Annotated[Model, Depends(server.model("square"))]
) -> str:
    return f"{await model.predict(side)} {request.app.state.unit}"  # the same queue as over HTTP


server.install(app, prefix="/ml")  # routes, and loading around the application's lifespan


def check(client: httpx2.Client) -> None:
    assert client.post("/ml/v1/models/square/predict", json=4).json() == 16
    print(client.get("/area?side=4").json())
    assert client.get("/area?side=4").json() == "16.0 m²"

    own, ml = client.get("/area?side=-1"), client.post("/ml/models/square/predict", json=-1)
    print(f"its own error: {own.status_code} {own.json()}\nmlserve's: {ml.json()}")
    assert (own.status_code, ml.json()["error"]["code"]) == (422, "invalid_input")
    assert client.get("/nowhere").json() == {"detail": "Not Found"}  # still FastAPI's


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(app) as client:
            check(client)
    else:
        sys.exit("Run it with: mlserve run 04_own_app:app")
