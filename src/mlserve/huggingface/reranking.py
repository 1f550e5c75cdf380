"""A query and documents in, their order out: the handler for cross-encoders."""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForSequenceClassification

from mlserve.errors import ConfigurationError
from mlserve.execution.devices import available_cores
from mlserve.handler import ModelHandler
from mlserve.huggingface._checkpoint import Checkpoint
from mlserve.huggingface._devices import (
    Dtype,
    encoder_replicas,
    padded_budget,
)
from mlserve.huggingface._encoder import Encoder, Tokens, padded_batches
from mlserve.huggingface.classification import check_top_k
from mlserve.settings import Batching
from mlserve.tasks.text import Text

__all__ = ["MAX_DOCUMENTS", "Ranking", "Reranking", "RerankingRequest"]

MAX_DOCUMENTS = 128
"""How many documents one request may hold; bounds how long it keeps others waiting."""


class RerankingRequest(BaseModel):
    """A query and the documents to put in order."""

    model_config = ConfigDict(extra="forbid")

    query: Text
    documents: Annotated[list[Text], Field(min_length=1, max_length=MAX_DOCUMENTS)]


class Ranking(BaseModel):
    """How well each document answers the query."""

    scores: list[float] = Field(description="One per document, in the order of the request.")
    order: list[int] = Field(
        description="Positions of the documents in the request, best first; the best `top_k` only"
        " if the server was told so."
    )


class Reranking(ModelHandler[RerankingRequest, Ranking]):
    """
    Serve a cross-encoder: a query and its documents become scores and an order.

    A request is a query with up to 128 documents, which the model reads with the query in turn. A
    batch is bounded by the tokens of all its pairs; `infer` then divides the pairs of all its
    requests by length, so that those of similar length share a run of the model, whoever sent them.

    By default there is one single-threaded replica per CPU core, at most four, or one replica on
    the first CUDA device; an instance gives one replica only, so hand the server a class or a
    `functools.partial`.

    Args:
        model: A hub id, or a local folder. Only safetensors weights are read and no code of the
            model is run.
        revision: The hub's branch, tag or commit; a commit pins the model.
        dtype: `"auto"` is float32 on CPU, and bfloat16 on CUDA devices that compute in it.
        max_length: Longer pairs are cut to this many tokens; `None` = what the model says.
        top_k: How many documents to give in `order`; `None` = all.
        normalize: Whether scores are from 0 to 1 (the sigmoid of what the model gives).
        model_kwargs: Further arguments of `from_pretrained`, such as `attn_implementation`, or
            `quantization_config` with `device_map`.
        compile: Whether `torch.compile` makes faster code of the model, which the first batches
            of warm-up then wait for.

    Raises:
        ConfigurationError: If an argument is wrong or the folder does not exist, on creation; if
            the model is unsafe, incomplete or no cross-encoder with one score, in `load`.

    Example:
        model = "cross-encoder/ms-marco-MiniLM-L6-v2"
        server.add("reranker", functools.partial(Reranking, model, top_k=10))
    """

    padded_tokens = padded_budget(torch.cuda.device_count())
    """How many padded tokens one run of the model has at most."""
    batching = Batching(max_size=64, max_cost=padded_tokens)
    replicas = encoder_replicas(torch.cuda.device_count(), available_cores())

    calibration_s: float | None = None
    """
    How many seconds `load` measures which budget of padded tokens is best here; 0 = not at all.

    `None` = 2 on CUDA and 0 on a CPU. What is found takes the place of `padded_tokens`, unless that
    was set.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: Dtype = "auto",
        max_length: int | None = None,
        top_k: int | None = None,
        normalize: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
        compile: bool = False,  # noqa: A002 - as torch has it
    ) -> None:
        check_top_k(top_k)
        self.top_k = top_k
        self.normalize = normalize
        checkpoint = Checkpoint(model, revision=revision, dtype=dtype, model_kwargs=model_kwargs)
        self.encoder = Encoder(
            checkpoint,
            AutoModelForSequenceClassification,
            max_length=max_length,
            compile=compile,
        )
        """The tokenizer and the model."""

    def load(self) -> None:
        """
        Open the model on the replica's device.

        Raises:
            ConfigurationError: If the model is unsafe, incomplete, or has more than one score.
        """
        self.encoder.load(self.context)
        self.encoder.calibrate(self.calibration_s, self.padded_tokens)
        self.padded_tokens = self.encoder.budget or self.padded_tokens
        n_labels = self.encoder.model.config.num_labels
        if n_labels != 1:
            raise ConfigurationError(
                f"Model {self.encoder.checkpoint.name!r} gives {n_labels} scores for a pair of"
                " texts instead of one. Use a cross-encoder that was trained to rank."
            )

    def examples(self) -> list[RerankingRequest]:
        """Give a query with documents of mixed length."""
        sentence = "A batch holds requests that were waiting when the model got free."
        documents = [sentence, "It rains.", " ".join([sentence] * 4)]
        return [RerankingRequest(query="What is in a batch?", documents=documents)]

    def preprocess(self, request: RerankingRequest) -> list[Tokens]:
        """
        Tokenise the query with each document.

        Raises:
            InvalidInputError: If there is nothing in them that the model reads.
        """
        return [
            self.encoder.tokenize(request.query, document, param="documents")
            for document in request.documents
        ]

    def cost(self, item: list[Tokens]) -> int:
        """Count the tokens of all pairs."""
        return sum(map(len, item))

    def infer(self, inputs: Sequence[list[Tokens]]) -> list[np.ndarray[Any, Any]]:
        """
        Run the pairs of all requests, those of similar length together.

        Returns:
            For each request what the model says of its documents: float32, shape (documents,), on
            the host.
        """
        pairs = [tokens for item in inputs for tokens in item]
        batches = padded_batches([len(tokens) for tokens in pairs], self.padded_tokens)
        with torch.inference_mode():
            logits = [
                self.encoder.forward([pairs[at] for at in batch])[0].logits[:, 0]
                for batch in batches
            ]
            # One copy to the host for all of it; it also waits for the device.
            found = torch.cat(logits).to(torch.float32).cpu().numpy()
        scores = np.empty_like(found)
        scores[[at for batch in batches for at in batch]] = found
        return np.split(scores, np.cumsum([len(item) for item in inputs])[:-1])

    def postprocess(self, output: np.ndarray[Any, Any]) -> Ranking:
        """Make the response; of documents with equal scores the first one in the request leads."""
        # By what the model says: far from 0 the sigmoid makes different values equal.
        order = np.argsort(-output, kind="stable")[: self.top_k]
        scores = torch.from_numpy(output).sigmoid() if self.normalize else output
        return Ranking(scores=scores.tolist(), order=order.tolist())

    def unload(self) -> None:
        """Free the model."""
        self.encoder.unload()
