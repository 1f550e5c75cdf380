"""
A scikit-learn model, served without writing a class.

    mlserve run 06_sklearn:server
    curl http://127.0.0.1:8000/v1/models/iris/predict --json \
        '{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}'

Needs `pip install scikit-learn`.
"""

import sys
from typing import Any

import httpx2
from pydantic import BaseModel, PositiveFloat
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import mlserve
from mlserve.testing import running

KINDS = ("setosa", "versicolor", "virginica")


class Flower(BaseModel):
    sepal_length: PositiveFloat
    sepal_width: PositiveFloat
    petal_length: PositiveFloat
    petal_width: PositiveFloat


class Kind(BaseModel):
    kind: str
    probability: float


def load() -> LogisticRegression:  # `joblib.load("iris.joblib")` for a model that is trained
    return LogisticRegression(max_iter=1000).fit(*load_iris(return_X_y=True))


def infer(model: LogisticRegression, flowers: list[Flower]) -> Any:  # a row per flower
    return model.predict_proba([list(flower.model_dump().values()) for flower in flowers])


def postprocess(model: LogisticRegression, row: Any) -> Kind:
    return Kind(kind=KINDS[row.argmax()], probability=row.max())


Iris = mlserve.handler(
    request=Flower, response=Kind, load=load, infer=infer, postprocess=postprocess
)
server = mlserve.ModelServer(title="Iris").add("iris", Iris)
app = server.build()


def check(client: httpx2.Client) -> None:
    for kind, values in {"setosa": (5.1, 3.5, 1.4, 0.2), "virginica": (6.9, 3.1, 5.4, 2.1)}.items():
        flower = dict(zip(Flower.model_fields, values, strict=True))
        answer = client.post("/v1/models/iris/predict", json=flower).json()
        print(flower, answer)
        assert answer["kind"] == kind

    refused = client.post("/v1/models/iris/predict", json=dict.fromkeys(Flower.model_fields, -1))
    print(refused.status_code, refused.json()["error"]["message"])
    assert refused.json()["error"]["param"] == "sepal_length"


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
