"""
A new version gets copies of the requests first, then a tenth of the clients, then all of them.

    MLSERVE_API_KEYS=operator:admin=an-example-of-a-key mlserve run 23_canary:server
    curl -i --json '{"text": "Hello, you"}' http://127.0.0.1:8000/models/words/predict
    curl -X PUT -H 'X-API-Key: an-example-of-a-key' --json '{"weights": {"v2": 1}}' \
        http://127.0.0.1:8000/admin/models/words/weights
"""

import os
import re
import sys
import threading
from collections import Counter

import httpx2
from fastapi import Depends
from pydantic import BaseModel

from mlserve import ModelHandler, ModelServer, Shadow, api_keys
from mlserve.testing import running

os.environ.setdefault("MLSERVE_API_KEYS", "operator:admin=an-example-of-a-key")
WEIGHTS, PREDICT = "/admin/models/words/weights", "/models/words/predict"


class Text(BaseModel):
    text: str


class Words(ModelHandler[Text, list[str]]):
    def examples(self) -> list[Text]:
        return [Text(text="Hello")]

    def infer(self, inputs: list[Text]) -> list[list[str]]:
        return [request.text.split() for request in inputs]


class WordsV2(Words):
    def infer(self, inputs: list[Text]) -> list[list[str]]:
        return [re.findall(r"\w+", request.text) for request in inputs]


server = ModelServer(title="Words", admin=[Depends(api_keys(scope="admin"))])
server.add("words", Words)
server.add("words", WordsV2, version="v2", changes="Without punctuation.")
server.route("words", {"v1": 1.0}, shadow=Shadow("v2"))
app = server.build()


def outcomes(client: httpx2.Client) -> dict[str, float]:
    found = re.findall(r'^mlserve_shadow_total\{.*outcome="(\w+)".* (\S+)$', metrics(client), re.M)
    return {outcome: float(value) for outcome, value in found}


def metrics(client: httpx2.Client) -> str:
    return client.get("/metrics").text


def check(client: httpx2.Client) -> None:
    for text in ("Hello you", "Hello, you"):
        assert client.post(PREDICT, json={"text": text}).headers["x-model-version"] == "v1"
    while sum(outcomes(client).values()) < 2:  # copies run after their answers
        threading.Event().wait(0.01)
    print("copies for v2:", outcomes(client))
    client.headers["X-API-Key"] = "an-example-of-a-key"
    for weights in ({"v1": 0.9, "v2": 0.1}, {"v2": 1.0}):
        assert client.put(WEIGHTS, json={"weights": weights, "shadow": None}).status_code == 200
        users = [client.post(PREDICT, json={"text": "a"}, headers={"X-Routing-Key": str(user)})
                 for user in range(200)]  # fmt: skip
        print(weights, dict(Counter(answer.headers["x-model-version"] for answer in users)))


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
