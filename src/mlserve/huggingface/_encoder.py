"""What the handlers for encoders share: a text to tokens, a batch of tokens through the model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlserve.errors import ConfigurationError, InvalidInputError
from mlserve.handler import Context
from mlserve.huggingface._calibration import measure_budget
from mlserve.huggingface._checkpoint import Checkpoint
from mlserve.huggingface._devices import padded_budget, place, to_device
from mlserve.observability.loggers import get_logger

__all__ = ["Encoder", "Tokens", "pad_batch", "padded_batches", "resolve_max_length"]

logger = get_logger(__name__)

# Tokenizers without a limit of their own give an astronomical number instead.
NO_LIMIT = 1_000_000
FALLBACK_MAX_LENGTH = 512
# The texts of a measurement: about as long as a paragraph.
CALIBRATION_TOKENS = 64
CALIBRATION_S = 2.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised text, special tokens included, without padding; in ordinary memory."""

    ids: list[int]
    """Ids in the model's vocabulary."""
    type_ids: list[int] | None
    """The segment of each token, for models that take it."""

    def __len__(self) -> int:
        return len(self.ids)


def resolve_max_length(
    asked: int | None, *, positions: int | None, advised: Sequence[int | None] = ()
) -> int:
    """
    Choose the longest input in tokens.

    Args:
        asked: What the user wants; `None` = the smallest of what is known.
        positions: How many positions the model has; more would break it.
        advised: Further limits, such as the tokenizer's own, which a user may exceed.

    Raises:
        ConfigurationError: If more is asked for than the model has positions.
    """
    if asked is not None:
        if positions is not None and asked > positions:
            raise ConfigurationError(
                f"`max_length` must be at most {positions} for this model, got {asked!r}."
            )
        return asked
    known = [limit for limit in (positions, *advised) if limit and limit < NO_LIMIT]
    return min(known, default=FALLBACK_MAX_LENGTH)


def n_positions(model: torch.nn.Module) -> int | None:
    """
    Count the positions that a text may take; `None` when the model has no such limit.

    A table with a padding row counts positions from the row after it (RoBERTa and its kin).
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - reserved
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def padded_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """
    Divide texts into batches of similar length, each within a budget of padded tokens. Pure.

    Args:
        lengths: The texts' lengths in tokens.
        budget: How many tokens a batch has at most once padded; a text that alone exceeds it is a
            batch by itself.

    Returns:
        Positions in `lengths`, each once, the longest first.

    Example:
        >>> padded_batches([3, 9, 4, 8], budget=18)
        [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = lengths[position]
    return batches


def pad_batch(batch: Sequence[Tokens], *, pad_id: int) -> dict[str, Tensor]:
    """
    Pad texts on the right to the longest of them.

    Args:
        batch: At least one tokenised text.
        pad_id: The id that fills up `input_ids`.

    Returns:
        The model's arguments, each int64 of shape (batch, longest): `input_ids`,
        `attention_mask` (1 for a token, 0 for padding) and, if the texts have them,
        `token_type_ids`.
    """
    lengths = [len(tokens) for tokens in batch]
    shape = (len(batch), max(lengths))

    def padded(rows: Sequence[list[int]], value: int) -> Tensor:
        array = np.full(shape, value, dtype=np.int64)
        for row, length, values in zip(array, lengths, rows, strict=True):
            row[:length] = values
        return torch.from_numpy(array)

    mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(-1)
    arguments = {
        "input_ids": padded([tokens.ids for tokens in batch], pad_id),
        "attention_mask": mask.to(torch.int64),
    }
    if batch[0].type_ids is not None:
        arguments["token_type_ids"] = padded([tokens.type_ids or [] for tokens in batch], 0)
    return arguments


class Encoder:
    """
    A tokenizer and a model that reads whole texts (BERT and its kin). One per replica.

    `tokenize` runs in the thread of `preprocess`, the rest in the replica's own. The two share
    nothing that changes: `forward` pads by itself, because a tokenizer is not safe to share.

    Args:
        checkpoint: Which model.
        auto_class: The class that opens it, such as `transformers.AutoModel`.
        max_length: Longer texts are cut to this many tokens; `None` = as long as the model takes.
        optional_weights: Prefixes of weights that may be missing, since they are not used.
        compile: Whether to have `torch.compile` make faster code of the model, for any shape.

    Raises:
        ConfigurationError: If `max_length` is not a positive whole number.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        auto_class: Any,
        *,
        max_length: int | None = None,
        optional_weights: Sequence[str] = (),
        compile: bool = False,  # noqa: A002 - as torch has it
    ) -> None:
        if max_length is not None and (type(max_length) is not int or max_length < 1):
            raise ConfigurationError(
                f"`max_length` must be a whole number of at least 1, got {max_length!r}."
            )
        self.checkpoint = checkpoint
        self.tokenizer: Any = None
        """The transformers tokenizer; `None` unless loaded."""
        self.model: Any = None
        """The transformers model in evaluation mode; `None` unless loaded."""
        self.max_length = max_length
        """The longest input in tokens; known once loaded."""
        self.budget: int | None = None
        """With how many padded tokens a batch runs best; `None` unless measured."""
        self._default_budget = 1
        self._run: Any = None
        self._compile = compile
        self._asked_max_length = max_length
        self._auto_class = auto_class
        self._optional_weights = optional_weights
        self._pad_id = 0
        self._n_vocabulary: int | None = None
        self._type_ids = False

    def load(self, context: Context) -> None:
        """
        Open the model on the replica's device. Runs in the replica's thread.

        On CPU, sets torch's compute threads to `context.threads` where given; torch keeps that
        number for the whole process.

        Raises:
            ConfigurationError: If the model is unsafe, incomplete or not of a fitting kind.
        """
        device, dtype = place(context, self.checkpoint.dtype)
        context.progress(0.1, "reading the tokenizer and the weights")
        self.tokenizer, self.model = self.checkpoint.load(
            self._auto_class, dtype=dtype, device=device, optional_weights=self._optional_weights
        )
        self._read_facts()
        # Texts have all lengths, so a compiled model must not be one for each of them.
        self._run = torch.compile(self.model, dynamic=True) if self._compile else self.model
        context.progress(1.0)
        logger.info(
            "encoder.load.completed",
            extra={"device": str(device), "dtype": str(dtype), "max_length": self.max_length},
        )

    def _read_facts(self) -> None:
        tokenizer, name = self.tokenizer, self.checkpoint.name
        if tokenizer.pad_token_id is None:
            raise ConfigurationError(
                f"The tokenizer of model {name!r} has no padding token, so texts cannot share a"
                " batch. Use a model that was trained as an encoder."
            )
        advice = self.checkpoint.read_json("sentence_bert_config.json").get("max_seq_length")
        self.max_length = resolve_max_length(
            self._asked_max_length,
            positions=n_positions(self.model),
            advised=(tokenizer.model_max_length, advice),
        )
        n_special = tokenizer.num_special_tokens_to_add()
        if self.max_length <= n_special:
            raise ConfigurationError(
                f"`max_length` must be more than the {n_special} special tokens that the"
                f" tokenizer adds, got {self.max_length!r}."
            )
        self._pad_id = tokenizer.pad_token_id
        self._n_vocabulary = getattr(self.model.config, "vocab_size", None)
        self._type_ids = "token_type_ids" in tokenizer.model_input_names

    def calibrate(self, seconds: float | None, asked: int | None) -> None:
        """
        Measure with how many padded tokens a batch runs best. Runs in the replica's thread.

        Args:
            seconds: How long that may take, but for a run that has begun; 0 = measure nothing,
                `None` = a while on CUDA and nothing on a CPU, of which the default is measured.
            asked: What a batch is bounded by; nothing is measured unless it is the default.
        """
        is_cuda = self.model.device.type == "cuda"
        self._default_budget = padded_budget(int(is_cuda))
        if seconds is None:
            seconds = CALIBRATION_S if is_cuda else 0.0
        if seconds <= 0 or asked != self._default_budget:
            return
        n_tokens = min(CALIBRATION_TOKENS, self.max_length or CALIBRATION_TOKENS)
        type_ids = [0] * n_tokens if self._type_ids else None
        text = Tokens([self._pad_id] * n_tokens, type_ids)

        def run(budget: int) -> int:
            n_texts = max(1, budget // n_tokens)
            with torch.inference_mode():
                output, _ = self.forward([text] * n_texts)
                output[0].flatten()[0].item()  # waits for the device
            return n_texts * n_tokens

        self.budget = measure_budget(run, self._default_budget, seconds, time.perf_counter)
        logger.info("encoder.calibration.completed", extra={"padded_tokens": self.budget})

    def cost(self, n_tokens: int) -> int:
        """
        Say what a text costs: its tokens or, once measured, its share of the default budget.

        So a batch that is bounded by the default has as many padded tokens as run best.
        """
        if self.budget is None:
            return n_tokens
        return -(-n_tokens * self._default_budget // self.budget)

    def tokenize(self, text: str, second: str | None = None, *, param: str = "text") -> Tokens:
        """
        Turn a text, or two that the model reads together, into at most `max_length` tokens.

        Nothing is padded. Of two texts the longer one is cut.

        Args:
            text: The text, or the first of two.
            second: The second text.
            param: What the text is called in the request; of two, the second.

        Raises:
            InvalidInputError: If the text has no token, is not valid Unicode, or holds a token
                that the model does not know.
        """
        encoded = self._encode(text, second, param=param, return_attention_mask=False)
        return Tokens(encoded["input_ids"], encoded["token_type_ids"] if self._type_ids else None)

    def tokenize_with_spans(self, text: str) -> tuple[Tokens, list[tuple[int, int] | None], bool]:
        """
        Turn a text into tokens, as `tokenize` does, and say where in the text each one stands.

        Returns:
            The tokens; for each the characters from start to end (not included), or `None` for
            special tokens; and whether the text was cut.

        Raises:
            InvalidInputError: As for `tokenize`.
        """
        encoded = self._encode(
            text,
            None,
            param="text",
            return_attention_mask=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        spans = [
            None if is_special else (start, end)
            for (start, end), is_special in zip(
                encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
            )
        ]
        tokens = Tokens(encoded["input_ids"], encoded["token_type_ids"] if self._type_ids else None)
        return tokens, spans, bool(encoded.encodings[0].overflowing)

    def _encode(self, text: str, second: str | None, *, param: str, **options: Any) -> Any:
        try:
            (text + (second or "")).encode()
        except UnicodeEncodeError:
            raise InvalidInputError(
                f"`{param}` holds half a surrogate pair.", param=param
            ) from None
        encoded = self.tokenizer(
            text, second, truncation=True, max_length=self.max_length, **options
        )
        ids = encoded["input_ids"]
        if len(ids) <= self.tokenizer.num_special_tokens_to_add(pair=second is not None):
            raise InvalidInputError(
                f"`{param}` holds nothing that the model reads; send at least one word.",
                param=param,
            )
        # On CUDA an id without an embedding would end the device for every later request.
        if self._n_vocabulary is not None and max(ids) >= self._n_vocabulary:
            raise InvalidInputError(f"`{param}` holds a token unknown to the model.", param=param)
        return encoded

    def forward(self, batch: Sequence[Tokens]) -> tuple[Any, Tensor]:
        """
        Run a batch through the model; call it under `torch.inference_mode()`.

        Returns:
            What the model returns, and the mask: 1 for a token, 0 for padding, int64, shape
            (batch, longest). Both are on the model's device.
        """
        arguments = to_device(pad_batch(batch, pad_id=self._pad_id), self.model.device)
        return self._run(**arguments), arguments["attention_mask"]

    def unload(self) -> None:
        """Free the model and give its memory back to the device; does nothing when not loaded."""
        on_cuda = self.model is not None and self.model.device.type == "cuda"
        self.tokenizer = self.model = self._run = None
        if on_cuda:
            torch.cuda.empty_cache()

    def __repr__(self) -> str:
        state = "not loaded" if self.model is None else f"{self.model.dtype} on {self.model.device}"
        return f"<Encoder {self.checkpoint.name} {state}>"
