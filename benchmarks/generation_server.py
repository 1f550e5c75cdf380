"""The server of `benchmarks.generation`; environment variables name its model and threads."""

import os
from functools import partial

from mlserve import ModelServer, Replicas
from mlserve.huggingface import TextGeneration, samples

MAX_LENGTH = 320

replicas = Replicas(threads_per_replica=int(os.environ["BENCHMARK_THREADS"]))
tiny = partial(TextGeneration, os.environ["BENCHMARK_TINY_LLAMA"], max_length=MAX_LENGTH)
smollm2 = partial(TextGeneration, samples.smollm2(), max_length=MAX_LENGTH)
server = (
    ModelServer(title="generation")
    .add("tiny", tiny, replicas=replicas)
    .add("smollm2", smollm2, replicas=replicas)
)
