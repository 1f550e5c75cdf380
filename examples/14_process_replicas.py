"""
A model in a process of its own: it may crash or hang, and nobody else notices.

    mlserve run 14_process_replicas:server
    curl --json '"ocean"' http://127.0.0.1:8000/v1/models/shout/predict
    curl --json '"crash"' http://127.0.0.1:8000/v1/models/shout/predict
"""

import ctypes
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2

from mlserve import Batching, Limits, ModelHandler, ModelServer, Replicas
from mlserve.testing import running


class Shout(ModelHandler[str, dict[str, str | int]]):
    def examples(self) -> list[str]:
        return ["hello"]

    def infer(self, inputs: list[str]) -> list[dict[str, str | int]]:
        if "crash" in inputs:
            ctypes.string_at(0)  # a segmentation fault, as a broken extension has it
        if "hang" in inputs:
            time.sleep(3600)
        time.sleep(0.05)  # long enough that the next requests gather for a batch
        return [{"text": text.upper(), "pid": os.getpid()} for text in inputs]


server = ModelServer(title="Crash-proof")
server.add(
    "shout",
    Shout,
    batching=Batching(max_size=16),
    replicas=Replicas(placement="process"),
    limits=Limits(hard_timeout_s=1.0),  # a call that takes longer ends its process
)


def check(client: httpx2.Client) -> None:
    def ask(text: str) -> httpx2.Response:
        return client.post("/v1/models/shout/predict", json=text, timeout=30.0)

    first = ask("ocean").json()
    print(first)
    assert first["pid"] != os.getpid()

    # One of 16 crashes the process: each of the 15 others gets its answer all the same.
    texts = ["crash" if n == 7 else f"text {n}" for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, texts))
    for text, answer in zip(texts, answers, strict=True):
        print(text, answer.status_code, answer.json())
        if text == "crash":
            assert answer.json()["error"]["code"] == "model_error"
        else:
            assert answer.json()["text"] == text.upper()

    hung = ask("hang")
    print("hang", hung.status_code, hung.json()["error"]["code"])
    assert hung.json()["error"]["code"] == "deadline_exceeded"

    again = ask("ocean").json()
    assert again["text"] == "OCEAN"
    assert again["pid"] != first["pid"]


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
