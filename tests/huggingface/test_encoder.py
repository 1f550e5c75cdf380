"""Tokenising, padding and limits, on tiny models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.huggingface.tiny_models import (
    MAX_POSITIONS,
    edit_json,
    loaded,
    run,
    save,
    tiny_config,
    tiny_encoder,
    tiny_tokenizer,
)

from mlserve.errors import ConfigurationError, InvalidInputError
from mlserve.handler import Context
from mlserve.huggingface import EmbeddingRequest, TextClassification, TextEmbedding
from mlserve.huggingface._encoder import (
    Tokens,
    n_positions,
    pad_batch,
    padded_batches,
    resolve_max_length,
)
from mlserve.tasks.text import MAX_CHARACTERS

rows = st.lists(st.integers(min_value=1, max_value=99), min_size=1, max_size=20)


@given(batch=st.lists(rows, min_size=1, max_size=8), pad_id=st.integers(0, 5))
def test_padding_keeps_each_text_and_fills_up_the_rest(batch: list[list[int]], pad_id: int) -> None:
    longest = max(len(row) for row in batch)

    arguments = pad_batch([Tokens(row, [0] * len(row)) for row in batch], pad_id=pad_id)

    assert arguments["input_ids"].tolist() == [
        row + [pad_id] * (longest - len(row)) for row in batch
    ]
    assert arguments["attention_mask"].tolist() == [
        [1] * len(row) + [0] * (longest - len(row)) for row in batch
    ]
    assert {tensor.dtype for tensor in arguments.values()} == {torch.int64}


@given(lengths=st.lists(st.integers(1, 600), max_size=40), budget=st.integers(1, 4_096))
def test_batches_hold_each_text_once_and_keep_to_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = padded_batches(lengths, budget)

    assert sorted(at for batch in batches for at in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[at] for at in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
    ordered = [lengths[at] for batch in batches for at in batch]
    assert ordered == sorted(lengths, reverse=True)


def test_models_without_segments_get_none() -> None:
    assert "token_type_ids" not in pad_batch([Tokens([2, 3], None)], pad_id=0)


@given(
    positions=st.none() | st.integers(1, 10_000),
    advised=st.lists(st.none() | st.integers(1, 10**30), max_size=3),
)
def test_the_longest_input_is_never_more_than_any_known_limit(
    positions: int | None, advised: list[int | None]
) -> None:
    chosen = resolve_max_length(None, positions=positions, advised=advised)

    assert chosen >= 1
    assert all(chosen <= limit for limit in (positions, *advised) if limit is not None)


def test_a_model_that_names_no_limit_gets_512_tokens() -> None:
    assert resolve_max_length(None, positions=None, advised=[10**30, None]) == 512


def test_an_advised_limit_may_be_exceeded_but_not_the_positions() -> None:
    assert resolve_max_length(300, positions=512, advised=[256]) == 300

    with pytest.raises(ConfigurationError, match="at most 512"):
        resolve_max_length(513, positions=512)


def test_a_table_with_a_padding_row_has_fewer_positions() -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position_embeddings = torch.nn.Embedding(514, 4, padding_idx=1)

    assert n_positions(Table()) == 512


def test_the_cost_is_the_number_of_tokens(encoder: Path) -> None:
    handler = loaded(TextEmbedding(encoder))

    tokens = handler.preprocess(EmbeddingRequest(text="a good film"))

    assert handler.cost(tokens) == len(tokens) == len(["[CLS]", "a", "good", "film", "[SEP]"])


@pytest.mark.parametrize(("max_length", "expected"), [(None, MAX_POSITIONS), (6, 6)])
def test_a_long_text_is_cut(encoder: Path, max_length: int | None, expected: int) -> None:
    handler = loaded(TextEmbedding(encoder, max_length=max_length))

    tokens = handler.preprocess(EmbeddingRequest(text="good film " * 100))

    assert len(tokens) == expected
    assert handler.infer([tokens])[0][1] == expected


def test_the_published_sequence_length_is_the_default(encoder: Path) -> None:
    edit_json(encoder / "sentence_bert_config.json", max_seq_length=9)

    assert loaded(TextEmbedding(encoder)).encoder.max_length == 9


@pytest.mark.parametrize("max_length", [0, -1, True, 2.5])
def test_a_length_that_is_no_positive_whole_number_is_refused(
    encoder: Path, max_length: int
) -> None:
    with pytest.raises(ConfigurationError, match="max_length"):
        TextEmbedding(encoder, max_length=max_length)


@pytest.mark.parametrize("max_length", [2, MAX_POSITIONS + 1])
def test_a_length_that_the_model_cannot_have_is_refused(encoder: Path, max_length: int) -> None:
    with pytest.raises(ConfigurationError, match="max_length"):
        loaded(TextEmbedding(encoder, max_length=max_length))


@pytest.mark.parametrize("text", ["   ", "\u200b", "\n\t"])
def test_a_text_without_a_token_is_the_clients_mistake(encoder: Path, text: str) -> None:
    handler = loaded(TextEmbedding(encoder))

    with pytest.raises(InvalidInputError, match="at least one word") as caught:
        handler.preprocess(EmbeddingRequest(text=text))

    assert caught.value.param == "text"


def test_half_a_surrogate_pair_is_the_clients_mistake(encoder: Path) -> None:
    handler = loaded(TextEmbedding(encoder))

    with pytest.raises(InvalidInputError, match="surrogate"):
        handler.preprocess(EmbeddingRequest.model_construct(text="good \ud800"))


def test_a_token_that_the_model_has_no_vector_for_is_the_clients_mistake(tmp_path: Path) -> None:
    handler = loaded(TextEmbedding(tiny_encoder(tmp_path, vocab_size=8)))

    assert handler.preprocess(EmbeddingRequest(text="a good film"))
    with pytest.raises(InvalidInputError, match="unknown to the model"):
        handler.preprocess(EmbeddingRequest(text="the end"))


@pytest.mark.parametrize("body", [{"text": ""}, {"text": "a", "more": 1}, {}])
def test_the_request_has_one_text_and_nothing_else(body: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        EmbeddingRequest.model_validate(body)


def test_the_longest_text_that_is_taken_is_bounded() -> None:
    EmbeddingRequest(text="a" * MAX_CHARACTERS)

    with pytest.raises(ValueError, match="at most"):
        EmbeddingRequest(text="a" * (MAX_CHARACTERS + 1))


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path) -> None:
    from transformers import BertModel

    folder = save(BertModel(tiny_config()), tmp_path, pad_token=None)

    with pytest.raises(ConfigurationError, match="no padding token"):
        loaded(TextEmbedding(folder))


def test_the_replica_computes_with_as_many_threads_as_it_was_given(
    encoder: Path, n_threads: int
) -> None:
    loaded(TextEmbedding(encoder), threads=n_threads + 1)

    assert torch.get_num_threads() == n_threads + 1


def test_the_number_of_threads_stays_when_none_is_given(encoder: Path, n_threads: int) -> None:
    loaded(TextEmbedding(encoder))

    assert torch.get_num_threads() == n_threads


def test_the_device_is_the_contexts(encoder: Path) -> None:
    handler = TextEmbedding(encoder)
    handler.context = Context(device="meta")

    handler.load()

    assert handler.encoder.model.device == torch.device("meta")


@pytest.mark.parametrize("handler", [TextEmbedding, TextClassification])
def test_a_compiled_model_is_what_runs_and_takes_any_shape(
    classifier: Path,
    monkeypatch: pytest.MonkeyPatch,
    handler: type[TextEmbedding | TextClassification],
) -> None:
    compiled: list[torch.nn.Module] = []
    n_runs = 0

    def fake_compile(model: torch.nn.Module, *, dynamic: bool) -> Any:
        assert dynamic
        compiled.append(model)

        def run_it(**arguments: torch.Tensor) -> Any:
            nonlocal n_runs
            n_runs += 1
            return model(**arguments)

        return run_it

    monkeypatch.setattr(torch, "compile", fake_compile)
    tiny = loaded(handler(classifier, compile=True))

    assert run(tiny, tiny.examples())
    assert compiled == [tiny.encoder.model]
    assert n_runs == 1


def test_nothing_is_compiled_unless_asked_for(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch, "compile")

    handler = loaded(TextEmbedding(encoder))

    assert run(handler, handler.examples())


def test_the_tokenizer_of_the_tests_is_a_real_one() -> None:
    assert tiny_tokenizer().tokenize("Films, longer") == ["film", "##s", "[UNK]", "long", "##er"]
