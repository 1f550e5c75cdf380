"""
Two versions of one model side by side; the path without a version follows the newest.

    mlserve run 09_versions:server
    curl --json '{"text": "Hello, you"}' http://127.0.0.1:8000/v1/models/tokens/predict
    curl --json '{"text": "Hello, you"}' http://127.0.0.1:8000/v2/models/tokens/predict
    curl --json '{"text": "Hello, you"}' http://127.0.0.1:8000/models/tokens/predict
"""

import functools
import re
import sys

import httpx2
from pydantic import BaseModel

from mlserve import ModelHandler, ModelServer
from mlserve.testing import running


class Text(BaseModel):
    text: str


class Token(BaseModel):
    token: str
    start: int


class Split(ModelHandler[Text, list[str]]):
    def examples(self) -> list[Text]:
        return [Text(text="Hello, you")]

    def infer(self, inputs: list[Text]) -> list[list[str]]:
        return [request.text.split() for request in inputs]


class SplitV2(ModelHandler[Text, list[Token]]):  # other answers: clients must choose them
    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def examples(self) -> list[Text]:
        return [Text(text="Hello, you")]

    def infer(self, inputs: list[Text]) -> list[list[Token]]:
        found = [self.pattern.finditer(request.text) for request in inputs]
        return [[Token(token=match[0], start=match.start()) for match in row] for row in found]


server = ModelServer(title="Tokens")
server.add("tokens", Split, version="v1")
# A handler with arguments: the `partial` is called once per replica.
server.add("tokens", functools.partial(SplitV2, r"\w+|[.,!?]"), version="v2")
app = server.build()


def check(client: httpx2.Client) -> None:
    v1, v2, newest = (
        client.post(f"{prefix}/models/tokens/predict", json={"text": "Hello, you"}).json()
        for prefix in ("/v1", "/v2", "")
    )
    print(f"v1: {v1}\nv2: {v2}")
    assert v1 == ["Hello,", "you"]
    assert v2 == newest
    assert [token["token"] for token in newest] == ["Hello", ",", "you"]
    assert client.get("/v1/models/tokens").json()["versions"] == ["v1", "v2"]


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
