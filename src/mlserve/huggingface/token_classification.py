"""Text in, entities out: the handler for token classifiers, such as recognisers of names."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForTokenClassification

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
    "Entities",
    "Entity",
    "TokenClassification",
    "TokenClassificationRequest",
    "group_tokens",
]


class TokenClassificationRequest(BaseModel):
    """One text; send several requests at once for several texts, they share batches."""

    model_config = ConfigDict(extra="forbid")

    text: Text


class Entity(BaseModel):
    """A part of the text and what it is."""

    label: str = Field(description="Without the prefix `B-` or `I-`.")
    score: float = Field(description="The mean of its tokens' probabilities.")
    start: int = Field(description="Its first character, counted from 0 in Unicode code points.")
    end: int = Field(description="The character after its last one.")
    text: str


class Entities(BaseModel):
    """What was found, in the order of the text."""

    entities: list[Entity]
    truncated: bool = Field(description="Whether the text was too long, and its end not read.")


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A text, its tokens, and where each of them stands."""

    text: str
    tokens: Tokens
    spans: list[tuple[int, int] | None]
    """For each token its characters from start to end; `None` for special tokens."""
    truncated: bool


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text with the best label of each token."""

    source: TokenisedText
    labels: np.ndarray[Any, Any]
    """Positions in `id2label`; float32, shape (tokens,)."""
    scores: np.ndarray[Any, Any]
    """Their probabilities; float32, shape (tokens,)."""


def group_tokens(labels: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """
    Join neighbours that belong to one entity, as the strategy `simple` of transformers does.

    A token joins the one before it if both have the same label but for the prefixes `B-` and `I-`,
    and its own prefix is not `B-`. Labels without a prefix count as `I-`. Pure.

    Args:
        labels: The label of each token.

    Yields:
        The label without prefix, the first position, and the one after the last.

    Example:
        >>> list(group_tokens(["B-PER", "I-PER", "B-PER", "O"]))
        [('PER', 0, 2), ('PER', 2, 3), ('O', 3, 4)]
    """
    start = 0
    tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
    for at in range(1, len(labels) + 1):
        if at < len(labels) and tags[at] == tags[start] and not labels[at].startswith("B-"):
            continue
        yield tags[start], start, at
        start = at


class TokenClassification(ModelHandler[TokenClassificationRequest, Entities]):
    """
    Serve a token classifier: a text becomes a list of entities, such as names and places.

    Each token gets its most probable label; neighbours of one entity are joined, as by
    `group_tokens`; what is labelled as in `ignore_labels` is left out. Words are not kept together
    where their tokens disagree. Of a text that is too long the end is not read, and `truncated`
    says so.

    Requests of similar length share a batch, bounded by padded tokens. By default there is one
    single-threaded replica per CPU core, at most four, or one replica on the first CUDA device; an
    instance gives one replica only, so hand the server a class or a `functools.partial`.

    Args:
        model: A hub id, or a local folder. Only safetensors weights are read and no code of the
            model is run.
        revision: The hub's branch, tag or commit; a commit pins the model.
        dtype: `"auto"` is float32 on CPU, and bfloat16 on CUDA devices that compute in it.
        max_length: Longer texts are cut to this many tokens; `None` = what the model says.
        ignore_labels: Labels that are no entity, without their prefixes.
        model_kwargs: Further arguments of `from_pretrained`, such as `attn_implementation`, or
            `quantization_config` with `device_map`.
        compile: Whether `torch.compile` makes faster code of the model, which the first batches
            of warm-up then wait for.

    Raises:
        ConfigurationError: If an argument is wrong or the folder does not exist, on creation; if
            the model is unsafe, incomplete, no token classifier, or has a tokenizer that does not
            know where its tokens stand, in `load`.

    Example:
        server.add("names", functools.partial(TokenClassification, "dslim/bert-base-NER"))
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
        ignore_labels: Sequence[str] = ("O",),
        model_kwargs: Mapping[str, Any] | None = None,
        compile: bool = False,  # noqa: A002 - as torch has it
    ) -> None:
        if isinstance(ignore_labels, str):
            raise ConfigurationError(
                f"`ignore_labels` must be several labels, such as ('O',), got {ignore_labels!r}."
            )
        self.ignore_labels = frozenset(ignore_labels)
        checkpoint = Checkpoint(model, revision=revision, dtype=dtype, model_kwargs=model_kwargs)
        self.encoder = Encoder(
            checkpoint, AutoModelForTokenClassification, max_length=max_length, compile=compile
        )
        """The tokenizer and the model."""

    def load(self) -> None:
        """
        Open the model on the replica's device.

        Raises:
            ConfigurationError: If the model is unsafe, incomplete, or does not fit the task.
        """
        self.encoder.load(self.context)
        self.encoder.calibrate(self.calibration_s, self.context.batching.max_cost)
        if not self.encoder.tokenizer.is_fast:
            raise ConfigurationError(
                f"The tokenizer of model {self.encoder.checkpoint.name!r} does not know where its"
                " tokens stand in the text. Use a model with a `tokenizer.json`."
            )

    def examples(self) -> list[TokenClassificationRequest]:
        """Give texts of mixed length."""
        sentence = "Ada Lovelace wrote to Charles Babbage from London."
        return [
            TokenClassificationRequest(text=sentence),
            TokenClassificationRequest(text="Paris"),
            TokenClassificationRequest(text=" ".join([sentence] * 4)),
        ]

    def preprocess(self, request: TokenClassificationRequest) -> TokenisedText:
        """
        Tokenise the text.

        Raises:
            InvalidInputError: If the text holds nothing that the model reads.
        """
        return TokenisedText(request.text, *self.encoder.tokenize_with_spans(request.text))

    def cost(self, item: TokenisedText) -> int:
        """Count the tokens."""
        return self.encoder.cost(len(item.tokens))

    def infer(self, inputs: Sequence[TokenisedText]) -> list[TaggedText]:
        """Run a batch and find the best label of each token."""
        with torch.inference_mode():
            output, _ = self.encoder.forward([item.tokens for item in inputs])
            scores, labels = output.logits.to(torch.float32).softmax(dim=-1).max(dim=-1)
            # One copy to the host for the whole batch; it also waits for the device.
            both = torch.stack([labels.to(torch.float32), scores], dim=1).cpu().numpy()
        return [
            TaggedText(item, *rows[:, : len(item.tokens)])
            for item, rows in zip(inputs, both, strict=True)
        ]

    def postprocess(self, output: TaggedText) -> Entities:
        """Join tokens to entities."""
        source, id2label = output.source, self.encoder.model.config.id2label
        kept = [(at, span) for at, span in enumerate(source.spans) if span is not None]
        entities = []
        for label, first, end in group_tokens([id2label[int(output.labels[at])] for at, _ in kept]):
            if label in self.ignore_labels:
                continue
            start_character, end_character = kept[first][1][0], kept[end - 1][1][1]
            scores = [float(output.scores[at]) for at, _ in kept[first:end]]
            entities.append(
                Entity(
                    label=label,
                    score=sum(scores) / len(scores),
                    start=start_character,
                    end=end_character,
                    text=source.text[start_character:end_character],
                )
            )
        return Entities(entities=entities, truncated=source.truncated)

    def unload(self) -> None:
        """Free the model."""
        self.encoder.unload()
