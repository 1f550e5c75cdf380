"""Text in, label out: the handler for text classifiers."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from mlserve.errors import ConfigurationError
from mlserve.execution.devices import available_cores
from mlserve.handler import ModelHandler
from mlserve.huggingface._checkpoint import Checkpoint
from mlserve.huggingface._devices import (
    Dtype,
    encoder_batching,
    encoder_replicas,
)
from mlserve.huggingface._encoder import Encoder, Tokens
from mlserve.tasks.text import Text

__all__ = [
    "Classification",
    "ClassificationRequest",
    "LabelScore",
    "TextClassification",
    "check_top_k",
    "classification_of",
    "scores_of",
]


class ClassificationRequest(BaseModel):
    """One text; send several requests at once for several texts, they share batches."""

    model_config = ConfigDict(extra="forbid")

    text: Text


class LabelScore(BaseModel):
    """A label and how likely it is."""

    label: str
    score: float


class Classification(BaseModel):
    """The best label and, if the server was told to give them, the best few."""

    label: str = Field(description="The label with the highest score.")
    score: float = Field(description="Its score.")
    scores: list[LabelScore] | None = Field(
        default=None, description="The best labels, best first; null unless `top_k` is set."
    )


def scores_of(logits: Tensor, problem_type: str | None) -> Tensor:
    """
    Turn a classifier's logits into scores.

    Args:
        logits: Any float dtype, shape (batch, labels).
        problem_type: As the model's configuration has it, or `None`.

    Returns:
        float32, shape (batch, labels): probabilities that add up to 1; where labels do not exclude
        each other, or there is only one, a probability for each; for a regression the values.
    """
    logits = logits.to(torch.float32)
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[-1] == 1:
        return logits.sigmoid()
    return logits.softmax(dim=-1)


def classification_of(
    scores: np.ndarray[Any, Any], labels: Mapping[int, str], top_k: int | None
) -> Classification:
    """
    Make the response of a classifier.

    Args:
        scores: Of one input, float32, shape (labels,).
        labels: The label of each position.
        top_k: How many to give in `scores`; `None` = only the best one, without `scores`.
    """
    best = np.argsort(-scores, kind="stable")[: top_k or 1]
    found = [LabelScore(label=labels[int(at)], score=float(scores[at])) for at in best]
    return Classification(
        label=found[0].label, score=found[0].score, scores=None if top_k is None else found
    )


def check_top_k(top_k: int | None) -> None:
    """
    Check how many labels a user wants.

    Raises:
        ConfigurationError: If it is neither `None` nor a positive whole number.
    """
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ConfigurationError(f"`top_k` must be a whole number of at least 1, got {top_k!r}.")


class TextClassification(ModelHandler[ClassificationRequest, Classification]):
    """
    Serve a text classifier: a text becomes a label with a score.

    Requests of similar length share a batch, bounded by padded tokens. By default there is one
    single-threaded replica per CPU core, at most four, or one replica on the first CUDA device; an
    instance gives one replica only, so hand the server a class or a `functools.partial`.

    Args:
        model: A hub id, or a local folder. Only safetensors weights are read and no code of the
            model is run.
        revision: The hub's branch, tag or commit; a commit pins the model.
        dtype: `"auto"` is float32 on CPU, and bfloat16 on CUDA devices that compute in it.
        max_length: Longer texts are cut to this many tokens; `None` = what the model says.
        top_k: How many labels to give in `scores`; `None` = only the best one, without `scores`.
        model_kwargs: Further arguments of `from_pretrained`, such as `attn_implementation`, or
            `quantization_config` with `device_map`.
        compile: Whether `torch.compile` makes faster code of the model, which the first batches
            of warm-up then wait for.

    Raises:
        ConfigurationError: If an argument is wrong or the folder does not exist, on creation; if
            the model is unsafe, incomplete or no classifier, in `load`.

    Example:
        server.add("sentiment", functools.partial(TextClassification, "org/name", top_k=3))
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
        top_k: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        compile: bool = False,  # noqa: A002 - as torch has it
    ) -> None:
        check_top_k(top_k)
        self.top_k = top_k
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
            ConfigurationError: If the model is unsafe, incomplete, or no classifier.
        """
        self.encoder.load(self.context)
        self.encoder.calibrate(self.calibration_s, self.context.batching.max_cost)

    def examples(self) -> list[ClassificationRequest]:
        """Give texts of mixed length."""
        sentence = "The film takes its time, but the last half hour is worth the wait."
        return [
            ClassificationRequest(text=sentence),
            ClassificationRequest(text="Great!"),
            ClassificationRequest(text=" ".join([sentence] * 4)),
        ]

    def preprocess(self, request: ClassificationRequest) -> Tokens:
        """
        Tokenise the text.

        Raises:
            InvalidInputError: If the text holds nothing that the model reads.
        """
        return self.encoder.tokenize(request.text)

    def cost(self, item: Tokens) -> int:
        """Count the tokens."""
        return self.encoder.cost(len(item))

    def infer(self, inputs: Sequence[Tokens]) -> list[np.ndarray[Any, Any]]:
        """
        Run a batch.

        Returns:
            For each text the scores of all labels: float32, shape (labels,), on the host.
        """
        with torch.inference_mode():
            output, _ = self.encoder.forward(inputs)
            scores = scores_of(output.logits, self.encoder.model.config.problem_type)
            # One copy to the host for the whole batch; it also waits for the device.
            return list(scores.cpu().numpy())

    def postprocess(self, output: np.ndarray[Any, Any]) -> Classification:
        """Make the response: the best label, and the `top_k` best where asked for."""
        return classification_of(output, self.encoder.model.config.id2label, self.top_k)

    def unload(self) -> None:
        """Free the model."""
        self.encoder.unload()
