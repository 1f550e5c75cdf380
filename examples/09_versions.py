"""
Two versions of one model side by side; the path without a version follows the newest.

    mlserve run 09_versions:server
    curl --json '{"text": "Hello you"}' http://127.0.0.1:8000/v1/models/tokens/predict
    curl --json '{"text": "Hello you"}' http://127.0.0.1:8000/v2/models/tokens/predict
    curl --json '{"text": "Hello you"}' http://127.0.0.1:8000/models/tokens/predict
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


class TextV2(Text):
    lower: bool = True  # a new field with a default: what v1's clients send is still taken


class Words(BaseModel):
    words: list[str]


class Span(BaseModel):
    word: str
    start: int


class Split(ModelHandler[Text, Words]):
    def examples(self) -> list[Text]:
        return [Text(text="Hello you")]

    def infer(self, inputs: list[Text]) -> list[Words]:
        return [Words(words=text.text.split()) for text in inputs]


class SplitV2(ModelHandler[TextV2, list[Span]]):  # another answer: clients have to choose it
    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def examples(self) -> list[TextV2]:
        return [TextV2(text="Hello you")]

    def infer(self, inputs: list[TextV2]) -> list[list[Span]]:
        return [self.spans(text.text.lower() if text.lower else text.text) for text in inputs]

    def spans(self, text: str) -> list[Span]:
        found = self.pattern.finditer(text)
        return [Span(word=match.group(), start=match.start()) for match in found]


server = ModelServer(title="Tokens")
server.add("tokens", Split)  # version="v1"
# A handler with arguments: `partial` makes it, once per replica.
server.add("tokens", functools.partial(SplitV2, r"\w+"), version="v2")
app = server.build()


def check(client: httpx2.Client) -> None:
    body = {"text": "Hello you"}
    v1, v2, newest = (
        client.post(f"{prefix}/models/tokens/predict", json=body).json()
        for prefix in ("/v1", "/v2", "")
    )
    print(f"v1: {v1}\nv2: {v2}")
    assert v1 == {"words": ["Hello", "you"]}
    assert v2 == newest == [{"word": "hello", "start": 0}, {"word": "you", "start": 6}]
    assert client.get("/v1/models/tokens").json()["versions"] == ["v1", "v2"]


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
