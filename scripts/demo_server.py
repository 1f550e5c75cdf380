"""
What `scripts/demo` serves: a real sentence encoder and a real language model.

Where the package with the language model is not installed, a toy that streams takes its place.
"""

import functools
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field

from mlserve import ModelHandler, ModelServer, Replicas, ServerSettings
from mlserve.huggingface import TextEmbedding, TextGeneration, samples
from mlserve.protocols.openai import OpenAIProtocol

LICENSE = Path(__file__).resolve().parent.parent / "LICENSE"


class Prompt(BaseModel):
    """How long the text becomes; the same seed gives the same text."""

    words: int = Field(30, ge=1, le=500)
    seed: int = 1


class Token(BaseModel):
    """The next piece of the text."""

    text: str


class Lawyer(ModelHandler[Prompt, str, Token]):
    """Writes like this project's license: it knows which word may follow any two others."""

    def load(self) -> None:
        words = re.findall(r"[A-Za-z'-]+[,.;:]?", LICENSE.read_text(encoding="utf-8"))
        self.following: dict[tuple[str, str], list[str]] = defaultdict(list)
        for number, word in enumerate(words[2:]):
            self.following[words[number], words[number + 1]].append(word)
            self.context.progress((number + 1) / len(words), "reading the license")
        self.beginnings = [pair for pair in self.following if pair[0].istitle()]

    def examples(self) -> list[Prompt]:
        return [Prompt(words=30, seed=1)]

    def stream(self, item: Prompt) -> Iterator[Token]:
        choose = random.Random(item.seed).choice
        pair = choose(self.beginnings)
        for _ in range(item.words):
            yield Token(text=f"{pair[0]} ")
            following = self.following.get(pair)
            pair = (pair[1], choose(following)) if following else choose(self.beginnings)
            time.sleep(0.03)  # about as fast as a chat model; otherwise it is done at once


# It accepts connections at once, so that the tour sees `/ready` while the models load.
server = ModelServer(title="mlserve demo", settings=ServerSettings(startup_wait_s=0))
server.add("minilm", functools.partial(TextEmbedding, samples.minilm()))
try:
    folder = samples.smollm2()  # the first call converts it
except ImportError:
    server.add("lawyer", Lawyer)
else:
    # In a process of its own: torch has one number of threads for each, and the encoder sets it.
    chat = functools.partial(TextGeneration, folder, max_length=1024)
    server.add("smollm2", chat, replicas=Replicas(count=1, placement="process"))
server.use(OpenAIProtocol())
