"""
A model behind another HTTP service: async hooks, and one call for a whole batch.

    uvicorn 11_remote_service:remote --port 9000          (stands for the other service)
    mlserve run 11_remote_service:server                  (in another terminal)
    curl --json '"good morning"' http://127.0.0.1:8000/v1/models/translate/predict

`async def` hooks run on the server's event loop: they may await, but must not block or compute.
"""

import asyncio
import functools
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
from fastapi import FastAPI

from mlserve import Batching, InvalidInputError, ModelHandler, ModelServer, Replicas
from mlserve.testing import running

WORDS = {"good": "guten", "morning": "Morgen", "evening": "Abend"}
remote = FastAPI(title="The other service")


@remote.post("/translate")
async def translate(texts: list[str]) -> list[str | None]:
    await asyncio.sleep(0.02)
    rows = [[WORDS.get(word, "?") for word in text.split()] for text in texts]
    return [None if "?" in row else " ".join(row) for row in rows]


class Translate(ModelHandler[str, str]):
    batching, replicas = Batching(max_size=64), Replicas(count=4)  # four calls at once, at most

    def __init__(self, url: str) -> None:
        self.url = url

    def examples(self) -> list[str]:
        return ["good evening"]

    async def load(self) -> None:
        self.client = httpx2.AsyncClient(base_url=self.url, timeout=10)

    async def unload(self) -> None:
        await self.client.aclose()

    async def infer(self, inputs: list[str]) -> list[str | Exception]:
        answer = await self.client.post("/translate", json=inputs)
        answer.raise_for_status()  # its error is logged; our clients get 500 `model_error`
        # An exception in the place of an output fails that request only.
        return [InvalidInputError("Unknown word.") if t is None else t for t in answer.json()]


def serve(url: str) -> ModelServer:
    return ModelServer(title="Translations").add("translate", functools.partial(Translate, url))


server = serve("http://127.0.0.1:9000")


def check(client: httpx2.Client) -> None:
    url, texts = "/v1/models/translate/predict", ["good morning", "good grief"] * 32
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda text: client.post(url, json=text), texts))
    print(answers[0].json(), answers[1].json()["error"]["message"], sep="\n")
    assert [answer.status_code for answer in answers] == [200, 422] * 32
    statistics = client.get("/v1/models/translate").json()["statistics"]
    print(f"{statistics['requests']} requests in {statistics['batches']} calls")
    assert statistics["batches"] < 32


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(remote) as other, running(serve(str(other.base_url))) as client:
            check(client)
    else:
        server.run()
