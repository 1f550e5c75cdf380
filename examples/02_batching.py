"""
Batching: requests that come while the model is busy share its next run.

    mlserve run 02_batching:server
    curl --json '{"text": "one two three"}' http://127.0.0.1:8000/v1/models/length/predict

`infer` sees batches; `preprocess` and `postprocess` see one request each and run beside it.
`python 02_batching.py --check` lets 32 clients call at once and prints how full batches were.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
from pydantic import BaseModel

from mlserve import Batching, InvalidInputError, ModelHandler, ModelServer
from mlserve.testing import running

RUN_S = 0.02  # what one run of the model takes, however many requests share it
N_CLIENTS, N_REQUESTS = 32, 10


class Text(BaseModel):
    text: str


class Length(BaseModel):
    words: int


class CountWords(ModelHandler[Text, Length]):
    def examples(self) -> list[Text]:
        return [Text(text="one two")]

    def preprocess(self, request: Text) -> list[str]:
        words = request.text.split()
        if not words:  # only this request is refused; its message reaches the client
            raise InvalidInputError("`text` has no words.", param="text")
        return words

    def infer(self, inputs: list[list[str]]) -> list[int]:
        time.sleep(RUN_S)  # stands for a model on an accelerator
        return [len(words) for words in inputs]

    def postprocess(self, output: int) -> Length:
        return Length(words=output)


server = ModelServer(title="Batching")
server.add("length", CountWords, batching=Batching(max_size=16))
app = server.build()


def check(client: httpx2.Client) -> None:
    def call_often(number: int) -> None:
        for _ in range(N_REQUESTS):
            answer = client.post("/v1/models/length/predict", json={"text": "word " * number})
            assert answer.json() == {"words": number}  # each client gets its own answer

    started = time.monotonic()
    with ThreadPoolExecutor(N_CLIENTS) as clients:
        list(clients.map(call_often, range(1, N_CLIENTS + 1)))
    took_s = time.monotonic() - started

    statistics = client.get("/v1/models/length").json()["statistics"]
    alone_s = N_CLIENTS * N_REQUESTS * RUN_S
    print(f"{N_CLIENTS * N_REQUESTS} requests in {took_s:.2f} s; one by one: {alone_s:.2f} s")
    print(f"{statistics['batches']} batches, mean size {statistics['mean_batch_size']:.1f}")
    assert statistics["mean_batch_size"] > 4


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
