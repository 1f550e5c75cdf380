"""Text in, vector out: the handler for sentence encoders."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from mlserve.errors import ConfigurationError
from mlserve.execution.devices import available_cores
from mlserve.handler import Call, ModelHandler
from mlserve.huggingface._checkpoint import Checkpoint
from mlserve.huggingface._devices import (
    Dtype,
    encoder_batching,
    encoder_replicas,
)
from mlserve.huggingface._encoder import Encoder, Tokens
from mlserve.observability.loggers import get_logger
from mlserve.tasks.embedding import Embedding, EmbeddingRequest

__all__ = ["Embedding", "EmbeddingRequest", "TextEmbedding", "cls_pooling", "mean_pooling"]

logger = get_logger(__name__)


def mean_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """
    Average token vectors into one vector per text, ignoring padding.

    Args:
        hidden: Last hidden states, any float dtype, shape (batch, tokens, dim).
        mask: 1 for a token, 0 for padding, int64, shape (batch, tokens); no row is all 0.

    Returns:
        float32, shape (batch, dim).

    Source:
        Reimers & Gurevych 2019, arXiv:1908.10084, section 3.

    Example:
        >>> mean_pooling(torch.ones(1, 3, 4), torch.ones(1, 3, dtype=torch.int64)).shape
        torch.Size([1, 4])
    """
    weights = mask.unsqueeze(-1).to(torch.float32)
    return (hidden.to(torch.float32) * weights).sum(dim=1) / weights.sum(dim=1)


def cls_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """
    Take the first token's vector; arguments and result as in `mean_pooling`.

    Source:
        Devlin et al. 2019, arXiv:1810.04805, section 3.
    """
    return hidden[:, 0].to(torch.float32)


POOLINGS = {"mean": mean_pooling, "cls": cls_pooling}
# What models published for sentence-transformers say of themselves in `1_Pooling/config.json`.
PUBLISHED_KEYS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


class TextEmbedding(ModelHandler[EmbeddingRequest, Embedding]):
    """
    Serve a sentence encoder: a text becomes a vector.

    Requests of similar length share a batch, bounded by padded tokens. By default there is one
    single-threaded replica per CPU core, at most four, or one replica on the first CUDA device; an
    instance gives one replica only, so hand the server a class or a `functools.partial`.

    Args:
        model: A hub id, or a local folder. Only safetensors weights are read and no code of the
            model is run.
        revision: The hub's branch, tag or commit; a commit pins the model.
        dtype: `"auto"` is float32 on CPU, and bfloat16 on CUDA devices that compute in it.
        max_length: Longer texts are cut to this many tokens; `None` = what the model says.
        pooling: How token vectors become one: their `"mean"`, or the first one (`"cls"`).
        normalize: Whether to scale vectors to length 1, so that a dot product is the cosine.
        model_kwargs: Further arguments of `from_pretrained`, such as `attn_implementation`, or
            `quantization_config` with `device_map`.
        compile: Whether `torch.compile` makes faster code of the model, which the first batches
            of warm-up then wait for.

    Raises:
        ConfigurationError: If an argument is wrong or the folder does not exist, on creation; if
            the model is unsafe or incomplete, in `load`.

    Example:
        server.add("minilm", functools.partial(TextEmbedding, samples.minilm()))
    """

    batching = encoder_batching(torch.cuda.device_count())
    replicas = encoder_replicas(torch.cuda.device_count(), available_cores())

    calibration_s: float | None = None
    """
    How many seconds `load` measures which budget of padded tokens is best here; 0 = not at all.

    `None` = 2 on CUDA and 0 on a CPU. What is found takes the place of the default of `batching`;
    with a `max_cost` of your own nothing is measured.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: Dtype = "auto",
        max_length: int | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
        compile: bool = False,  # noqa: A002 - as torch has it
    ) -> None:
        if pooling not in POOLINGS:
            raise ConfigurationError(f"`pooling` must be 'mean' or 'cls', got {pooling!r}.")
        self.pooling = pooling
        self.normalize = normalize
        checkpoint = Checkpoint(model, revision=revision, dtype=dtype, model_kwargs=model_kwargs)
        # The pooler sits on top of the hidden states that are used here, so it may be missing.
        self.encoder = Encoder(
            checkpoint,
            AutoModel,
            max_length=max_length,
            optional_weights=("pooler.",),
            compile=compile,
        )
        """The tokenizer and the model."""

    def load(self) -> None:
        """
        Open the model on the replica's device.

        Raises:
            ConfigurationError: If the model is unsafe, incomplete, or not an encoder.
        """
        self.encoder.load(self.context)
        self.encoder.calibrate(self.calibration_s, self.context.batching.max_cost)
        name = self.encoder.checkpoint.name
        if self.encoder.model.config.is_encoder_decoder:
            raise ConfigurationError(
                f"Model {name!r} is an encoder and a decoder. Use a model that only encodes."
            )
        published = self.encoder.checkpoint.read_json("1_Pooling/config.json")
        other = "cls" if self.pooling == "mean" else "mean"
        if published.get(PUBLISHED_KEYS[other]) and not published.get(PUBLISHED_KEYS[self.pooling]):
            logger.warning(
                "Model %r was trained with pooling='%s', but is served with pooling='%s'.",
                name,
                other,
                self.pooling,
            )

    def examples(self) -> list[EmbeddingRequest]:
        """Give texts of mixed length."""
        sentence = "A model server gathers requests that wait and runs them as one batch."
        return [
            EmbeddingRequest(text=sentence),
            EmbeddingRequest(text="Hello!"),
            EmbeddingRequest(text=" ".join([sentence] * 4)),
        ]

    def preprocess(self, request: EmbeddingRequest) -> Tokens:
        """
        Tokenise the text.

        Raises:
            InvalidInputError: If the text holds nothing that the model reads.
        """
        return self.encoder.tokenize(request.text)

    def cost(self, item: Tokens) -> int:
        """Count the tokens."""
        return self.encoder.cost(len(item))

    def infer(self, inputs: Sequence[Tokens]) -> list[tuple[np.ndarray[Any, Any], int]]:
        """
        Run a batch.

        Returns:
            For each text its vector (float32, shape (dim,), on the host) and its token count.
        """
        with torch.inference_mode():
            output, mask = self.encoder.forward(inputs)
            vectors = POOLINGS[self.pooling](output.last_hidden_state, mask)
            if self.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            # One copy to the host for the whole batch; it also waits for the device.
            rows = vectors.cpu().numpy()
        return [(row, len(tokens)) for row, tokens in zip(rows, inputs, strict=True)]

    def postprocess(
        self, output: tuple[np.ndarray[Any, Any], int], call: Call | None = None
    ) -> Embedding:
        """Make the response, and note the tokens for log and metrics."""
        vector, tokens = output
        if call is not None:
            call.annotate(prompt_tokens=tokens)
        return Embedding(embedding=vector.tolist(), tokens=tokens)

    def unload(self) -> None:
        """Free the model."""
        self.encoder.unload()
