"""
A model behind another HTTP service: async hooks, and one call for a whole batch.

    uvicorn 11_remote_service:remote --port 9000        (stands for the other service)
    mlserve run 11_remote_service:server                (in another terminal)
    curl --json '"good morning"' http://127.0.0.1:8000/v1/models/translate/predict

`async def` hooks run on the server's event loop, so what waits there must be awaited.
"""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
from fastapi import FastAPI

from mlserve import Batching, ModelHandler, ModelServer
from mlserve.testing import running

remote = FastAPI(title="Remote")  # the other service; it takes many texts at once
WORDS = {"good": "guten", "morning": "Morgen", "evening": "Abend"}


@remote.post("/translate")
async def translate(texts: list[str]) -> list[str | None]:
    return [" ".join(WORDS[w] for w in text.split()) if ... else None for text in texts]
