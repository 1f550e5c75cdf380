"""
A model behind HTTP: the types of request and response, `infer`, and a server.

    mlserve run 01_hello:server                  (or: uvicorn 01_hello:app)
    curl --json '{"text": "A lovely film."}' http://127.0.0.1:8000/v1/models/sentiment/predict

Open http://127.0.0.1:8000/docs in a browser, too.
`python 01_hello.py --check` calls itself and ends; it needs `pip install 'mlserve[client]'`.
"""

import sys

import httpx2
from pydantic import BaseModel

from mlserve import ModelHandler, ModelServer
from mlserve.testing import running


class Review(BaseModel):
    text: str


class Verdict(BaseModel):
    label: str
    score: float


class Sentiment(ModelHandler[Review, Verdict]):
    def load(self) -> None:  # once, before the first request; weights would be read here
        self.weights = {"lovely": 1.0, "good": 0.7, "boring": -0.8, "terrible": -1.0}

    def examples(self) -> list[Review]:  # the model is warmed up with them; /docs shows them
        return [Review(text="A good film.")]

    def infer(self, inputs: list[Review]) -> list[Verdict]:  # one output per input, in order
        return [self.judge(review.text) for review in inputs]

    def judge(self, text: str) -> Verdict:
        score = sum(self.weights.get(word.strip(".,!?"), 0.0) for word in text.lower().split())
        return Verdict(label="positive" if score > 0 else "negative", score=score)


server = ModelServer(title="Reviews").add("sentiment", Sentiment)
app = server.build()  # an ordinary FastAPI application


def check(client: httpx2.Client) -> None:
    for text, label in (("A lovely film.", "positive"), ("Terrible, and boring!", "negative")):
        answer = client.post("/v1/models/sentiment/predict", json={"text": text})
        print(f"{answer.status_code}  {text}  {answer.json()}")
        assert answer.json()["label"] == label

    refused = client.post("/v1/models/sentiment/predict", json={"words": "A lovely film."})
    print(f"{refused.status_code}  {refused.json()['error']['message']}")
    assert refused.json()["error"]["param"] == "text"
    assert client.get("/ready").status_code == 200


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
