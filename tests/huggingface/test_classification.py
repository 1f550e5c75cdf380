"""`TextClassification` against plain transformers, on tiny models with random weights."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.huggingface.tiny_models import loaded, run, tiny_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mlserve.errors import ConfigurationError
from mlserve.huggingface import ClassificationRequest, TextClassification
from mlserve.huggingface.classification import scores_of

TEXTS = ["bad", "a good film", "the film is long and the end is bad", "short and good " * 6]


def plain_scores(folder: Path, text: str) -> list[float]:
    """Classify one text, alone, as the documentation of transformers does it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
    scores: list[float] = logits.softmax(-1).tolist()
    return scores


def requests(texts: list[str]) -> list[ClassificationRequest]:
    return [ClassificationRequest(text=text) for text in texts]


@pytest.mark.parametrize("texts", [[text] for text in TEXTS] + [TEXTS, TEXTS[::-1]])
def test_scores_equal_those_of_plain_transformers(classifier: Path, texts: list[str]) -> None:
    handler = loaded(TextClassification(classifier, top_k=3))

    answers = run(handler, requests(texts))

    for text, answer in zip(texts, answers, strict=True):
        expected = dict(zip(["bad", "mixed", "good"], plain_scores(classifier, text), strict=True))
        assert {each.label: each.score for each in answer.scores} == pytest.approx(
            expected, abs=1e-5
        )
        assert answer.label == max(expected, key=lambda label: expected[label])


def test_scores_come_best_first_and_no_more_than_asked_for(classifier: Path) -> None:
    [answer] = run(loaded(TextClassification(classifier, top_k=2)), requests(["a good film"]))

    scores = [each.score for each in answer.scores]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert (answer.label, answer.score) == (answer.scores[0].label, answer.scores[0].score)


def test_more_scores_than_labels_are_all_labels(classifier: Path) -> None:
    [answer] = run(loaded(TextClassification(classifier, top_k=99)), requests(["a good film"]))

    assert len(answer.scores) == 3


def test_without_top_k_there_is_the_best_label_only(classifier: Path) -> None:
    [answer] = run(loaded(TextClassification(classifier)), requests(["a good film"]))

    assert answer.scores is None
    assert type(answer.score) is float
    assert answer.model_dump_json().endswith('"scores":null}')


@pytest.mark.parametrize("top_k", [0, -1, True, 1.5])
def test_top_k_must_be_a_positive_whole_number(classifier: Path, top_k: int) -> None:
    with pytest.raises(ConfigurationError, match="top_k"):
        TextClassification(classifier, top_k=top_k)


def test_labels_that_do_not_exclude_each_other_get_a_probability_each(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path, problem_type="multi_label_classification")
    handler = loaded(TextClassification(folder, top_k=3))
    exclusive = plain_scores(folder, "a good film")

    [answer] = run(handler, requests(["a good film"]))

    assert sum(exclusive) == pytest.approx(1)
    assert sum(each.score for each in answer.scores) != pytest.approx(1)


@pytest.mark.parametrize(
    ("problem_type", "logits", "expected"),
    [
        (None, [[0.0, 0.0]], [[0.5, 0.5]]),
        (None, [[0.0]], [[0.5]]),
        ("multi_label_classification", [[0.0, 0.0, 0.0]], [[0.5, 0.5, 0.5]]),
        ("regression", [[3.5]], [[3.5]]),
    ],
)
def test_what_a_score_is_depends_on_the_kind_of_problem(
    problem_type: str | None, logits: list[list[float]], expected: list[list[float]]
) -> None:
    scores = scores_of(torch.tensor(logits, dtype=torch.bfloat16), problem_type)

    assert scores.dtype is torch.float32
    assert scores.tolist() == expected


def test_examples_are_there_before_the_model_and_of_mixed_length(classifier: Path) -> None:
    lengths = {len(example.text) for example in TextClassification(classifier).examples()}

    assert len(lengths) > 1


def test_the_model_is_freed_by_unload(classifier: Path) -> None:
    handler = loaded(TextClassification(classifier))
    run(handler, handler.examples())
    model = weakref.ref(handler.encoder.model)

    handler.unload()

    gc.collect()
    assert model() is None
    assert "not loaded" in repr(handler.encoder)


def test_unload_after_a_failed_load_does_nothing(classifier: Path) -> None:
    handler = TextClassification(classifier)
    (classifier / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        loaded(handler)

    handler.unload()

    assert handler.encoder.model is None
