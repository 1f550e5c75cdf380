"""`TextEmbedding` against plain transformers: on a tiny model, and on the real MiniLM."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.huggingface.tiny_models import edit_json, loaded, run, save, tiny_config
from transformers import (
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertForSequenceClassification,
)

from mlserve.errors import ConfigurationError
from mlserve.huggingface import Embedding, EmbeddingRequest, TextEmbedding, samples
from mlserve.huggingface.embedding import cls_pooling, mean_pooling

TEXTS = [
    "How do I reset my password?",
    "Yes.",
    "I forgot my password and would like to choose a new one for my account.",
    "The recipe needs two eggs, a cup of flour and some butter. " * 6,
    "naïve café, 東京, 🙂!",
    "word " * 400,
]
BATCHES = [
    [0],
    [3],
    [0, 1, 2, 3, 4, 5],
    [5, 4, 3, 2, 1, 0],
    [1, 5],
    [2, 2, 2],
]


def requests(texts: list[str]) -> list[EmbeddingRequest]:
    return [EmbeddingRequest(text=text) for text in texts]


def largest_difference(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


class Plain:
    """MiniLM as its model card has it: one text at a time, mean pooling, scaled to length 1."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder)
        self.max_length = max_length

    def __call__(self, text: str) -> list[float]:
        inputs = self.tokenizer(
            text, return_tensors="pt", truncation=True, max_length=self.max_length
        )
        with torch.no_grad():
            hidden = self.model(**inputs).last_hidden_state[0]
        mean = hidden.mean(0)
        vector: list[float] = (mean / mean.norm()).tolist()
        return vector


@pytest.fixture(scope="module")
def minilm() -> TextEmbedding:
    return loaded(TextEmbedding(samples.minilm()))


@pytest.fixture(scope="module")
def plain_vectors() -> list[list[float]]:
    plain = Plain(samples.minilm(), max_length=256)
    return [plain(text) for text in TEXTS]


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
def test_vectors_of_minilm_equal_plain_transformers_in_any_batch(
    minilm: TextEmbedding, plain_vectors: list[list[float]], batch: list[int]
) -> None:
    answers = run(minilm, requests([TEXTS[number] for number in batch]))

    for number, answer in zip(batch, answers, strict=True):
        assert largest_difference(answer.embedding, plain_vectors[number]) < 1e-5


@pytest.mark.slow
def test_similar_sentences_are_nearer_than_others(minilm: TextEmbedding) -> None:
    question, _, same, recipe, *_ = (answer.embedding for answer in run(minilm, requests(TEXTS)))

    assert cosine(question, same) > 0.5 > 0.2 > cosine(question, recipe)


@pytest.mark.slow
def test_minilm_reads_as_many_tokens_as_it_was_published_for(minilm: TextEmbedding) -> None:
    [answer] = run(minilm, requests(["word " * 400]))

    assert answer.tokens == minilm.encoder.max_length == 256


@pytest.mark.slow
def test_minilm_in_bfloat16_gives_nearly_the_same_vectors(
    plain_vectors: list[list[float]],
) -> None:
    handler = loaded(TextEmbedding(samples.minilm(), dtype="bfloat16"))

    answers = run(handler, requests(TEXTS))

    for answer, expected in zip(answers, plain_vectors, strict=True):
        assert cosine(answer.embedding, expected) > 0.999


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", True), ("cls", False)])
def test_vectors_of_a_tiny_model_equal_plain_transformers(
    encoder: Path, pooling: Any, normalize: bool
) -> None:
    texts = ["bad", "a good film", "the film is long and the end is bad " * 2]
    tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
    model: Any = AutoModel.from_pretrained(encoder)

    answers = run(
        loaded(TextEmbedding(encoder, pooling=pooling, normalize=normalize)), requests(texts)
    )

    for text, answer in zip(texts, answers, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vector = hidden.mean(0) if pooling == "mean" else hidden[0]
        vector = vector / vector.norm() if normalize else vector
        assert largest_difference(answer.embedding, vector.tolist()) < 1e-5


def test_an_answer_is_made_of_plain_numbers(encoder: Path) -> None:
    handler = loaded(TextEmbedding(encoder))

    [answer] = run(handler, requests(["a good film"]))

    assert isinstance(answer, Embedding)
    assert {type(number) for number in answer.embedding} == {float}
    assert type(answer.tokens) is int
    assert answer.tokens == 5


def test_mean_pooling_ignores_padding() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]]])

    pooled = mean_pooling(hidden, torch.tensor([[1, 1, 0]]))

    assert pooled.tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("pooling", [mean_pooling, cls_pooling])
def test_pooling_is_done_in_float32(pooling: Any) -> None:
    hidden = torch.ones(2, 3, 4, dtype=torch.bfloat16)

    pooled = pooling(hidden, torch.ones(2, 3, dtype=torch.int64))

    assert pooled.dtype is torch.float32
    assert pooled.shape == (2, 4)


def test_another_pooling_is_refused(encoder: Path) -> None:
    with pytest.raises(ConfigurationError, match="`pooling` must be 'mean' or 'cls'"):
        TextEmbedding(encoder, pooling="max")  # type: ignore[arg-type] # what is tested


def test_a_pooling_that_the_model_was_not_trained_with_is_warned_of(
    encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (encoder / "1_Pooling").mkdir()
    edit_json(encoder / "1_Pooling" / "config.json", pooling_mode_cls_token=True)

    with caplog.at_level(logging.WARNING):
        loaded(TextEmbedding(encoder, pooling="cls"))
        assert caplog.messages == []
        loaded(TextEmbedding(encoder, pooling="mean"))

    assert caplog.messages == [
        "Model 'encoder' was trained with pooling='cls', but is served with pooling='mean'."
    ]


def test_weights_that_are_not_used_may_be_missing(tmp_path: Path) -> None:
    whole = BertForSequenceClassification(tiny_config())
    del whole.bert.pooler
    folder = save(whole, tmp_path)

    assert run(loaded(TextEmbedding(folder)), requests(["a good film"]))


def test_a_model_that_also_decodes_is_refused(tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=16,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=None,
    )
    folder = save(BartModel(config), tmp_path)

    with pytest.raises(ConfigurationError, match="only encodes"):
        loaded(TextEmbedding(folder))


def test_examples_are_there_before_the_model_and_of_mixed_length(encoder: Path) -> None:
    lengths = {len(example.text) for example in TextEmbedding(encoder).examples()}

    assert len(lengths) > 1


def test_a_subclass_may_change_one_hook(encoder: Path) -> None:
    class Query(TextEmbedding):
        def preprocess(self, request: EmbeddingRequest) -> Any:
            return self.encoder.tokenize(f"the {request.text}")

    [prefixed] = run(loaded(Query(encoder)), requests(["film"]))
    [whole] = run(loaded(TextEmbedding(encoder)), requests(["the film"]))

    assert prefixed == whole
