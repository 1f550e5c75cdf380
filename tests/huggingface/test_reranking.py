"""`Reranking` against plain transformers, on a tiny random cross-encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.huggingface.tiny_models import MAX_POSITIONS, loaded, run, tiny_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mlserve.errors import ConfigurationError
from mlserve.huggingface import Reranking, RerankingRequest
from mlserve.huggingface._encoder import Tokens
from mlserve.huggingface.reranking import MAX_DOCUMENTS

DOCUMENTS = ["bad", "a good film", "the film is long and the end is bad", "short and good " * 9]


def plain_logits(folder: Path, query: str, documents: list[str]) -> list[float]:
    """Score each pair alone, as the documentation of transformers does it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    settings = {"truncation": True, "max_length": MAX_POSITIONS, "return_tensors": "pt"}
    with torch.no_grad():
        return [model(**tokenizer(query, text, **settings)).logits.item() for text in documents]


def request(documents: list[str], query: str = "good film") -> RerankingRequest:
    return RerankingRequest(query=query, documents=documents)


@pytest.mark.parametrize("padded_tokens", [1, 40, 2_048])
def test_scores_and_order_equal_those_of_plain_transformers(
    ranker: Path, padded_tokens: int
) -> None:
    handler = loaded(Reranking(ranker, normalize=False))
    handler.padded_tokens = padded_tokens
    asked = [request(DOCUMENTS), request(["the end"], "bad"), request(DOCUMENTS[::-1], "a film")]

    answers = run(handler, asked)

    for each, answer in zip(asked, answers, strict=True):
        expected = plain_logits(ranker, each.query, each.documents)
        assert answer.scores == pytest.approx(expected, abs=1e-5)
        assert answer.order == sorted(range(len(expected)), key=lambda at: -expected[at])


def test_a_document_is_read_together_with_the_query(ranker: Path) -> None:
    handler = loaded(Reranking(ranker))

    first, second = run(handler, [request(["the end"], "bad"), request(["the end"], "good film")])

    assert first.scores != second.scores


def test_scores_are_from_0_to_1_and_keep_the_order(ranker: Path) -> None:
    [raw] = run(loaded(Reranking(ranker, normalize=False)), [request(DOCUMENTS)])
    [answer] = run(loaded(Reranking(ranker)), [request(DOCUMENTS)])

    assert answer.scores == pytest.approx(torch.tensor(raw.scores).sigmoid().tolist())
    assert answer.order == raw.order


def test_values_that_differ_are_put_in_order_although_their_scores_are_equal(ranker: Path) -> None:
    handler = loaded(Reranking(ranker))
    output = torch.tensor([100.0, 101.0]).numpy()

    answer = handler.postprocess(output)

    assert answer.scores == [1.0, 1.0]
    assert answer.order == [1, 0]


def test_only_the_best_are_named_where_asked_for_but_all_have_scores(ranker: Path) -> None:
    [all_of_them] = run(loaded(Reranking(ranker)), [request(DOCUMENTS)])
    [answer] = run(loaded(Reranking(ranker, top_k=2)), [request(DOCUMENTS)])

    assert answer.order == all_of_them.order[:2]
    assert len(answer.scores) == len(DOCUMENTS)


def test_documents_of_all_requests_share_runs_of_the_model_by_length(
    ranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = loaded(Reranking(ranker))
    handler.padded_tokens = 60
    inputs = [handler.preprocess(request(["good", "good " * 20])) for _ in range(2)]
    shapes: list[list[int]] = []
    forward = handler.encoder.forward

    def noted(batch: list[Tokens]) -> Any:
        shapes.append([len(tokens) for tokens in batch])
        return forward(batch)

    monkeypatch.setattr(handler.encoder, "forward", noted)

    handler.infer(inputs)

    assert shapes == [[25, 25], [6, 6]]


def test_the_cost_is_that_of_all_pairs(ranker: Path) -> None:
    handler = loaded(Reranking(ranker))

    tokens = handler.preprocess(request(["the end", "a"]))

    assert handler.cost(tokens) == len("[CLS] good film [SEP] the end [SEP]".split()) + 6


def test_the_number_of_documents_is_bounded() -> None:
    request(["a"] * MAX_DOCUMENTS)

    for documents in ([], ["a"] * (MAX_DOCUMENTS + 1)):
        with pytest.raises(ValueError, match="validation error"):
            request(documents)


def test_a_classifier_with_several_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="gives 3 scores"):
        loaded(Reranking(tiny_classifier(tmp_path)))


def test_top_k_must_be_a_positive_whole_number(ranker: Path) -> None:
    with pytest.raises(ConfigurationError, match="top_k"):
        Reranking(ranker, top_k=0)
