"""The server of `benchmarks.generation`, which says by an environment variable where models are."""

import os
from functools import partial

from mlserve import ModelServer
from mlserve.huggingface import TextGeneration, samples

MAX_LENGTH = 320
FOLDER = "BENCHMARK_TINY_LLAMA"

server = (
    ModelServer(title="generation")
    .add("tiny", partial(TextGeneration, os.environ[FOLDER], max_length=MAX_LENGTH))
    .add("smollm2", partial(TextGeneration, samples.smollm2(), max_length=MAX_LENGTH))
)
