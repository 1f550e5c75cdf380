"""`TokenClassification` against the pipeline of transformers, on a tiny random model."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.huggingface.tiny_models import MAX_POSITIONS, loaded, run
from transformers import pipeline

from mlserve.errors import ConfigurationError
from mlserve.huggingface import TokenClassification, TokenClassificationRequest
from mlserve.huggingface.token_classification import group_tokens

TEXTS = [
    "Good",
    "a good Film and the bad end",
    "the films,  long and longer; bad end is a film",
    "short and good film is long " * 4,
]


def requests(texts: list[str]) -> list[TokenClassificationRequest]:
    return [TokenClassificationRequest(text=text) for text in texts]


@pytest.mark.parametrize("texts", [[text] for text in TEXTS] + [TEXTS, TEXTS[::-1]])
def test_entities_equal_those_of_the_pipeline_of_transformers(
    tagger: Path, texts: list[str]
) -> None:
    plain: Any = pipeline("token-classification", str(tagger), aggregation_strategy="simple")

    answers = run(loaded(TokenClassification(tagger)), requests(texts))

    for text, answer in zip(texts, answers, strict=True):
        expected = [
            (
                each["entity_group"],
                pytest.approx(float(each["score"]), abs=1e-5),
                each["start"],
                each["end"],
            )
            for each in plain(text)
        ]
        found = [(each.label, each.score, each.start, each.end) for each in answer.entities]
        assert found == expected


def test_the_texts_of_these_tests_hold_several_kinds_of_entity(tagger: Path) -> None:
    answers = run(loaded(TokenClassification(tagger, ignore_labels=())), requests(TEXTS))

    labels = {each.label for answer in answers for each in answer.entities}
    assert len(labels) >= 2


def test_an_entity_is_a_part_of_the_text_as_it_was_sent(tagger: Path) -> None:
    [text] = texts = ["the FILMS\u2003are Good"]

    [answer] = run(loaded(TokenClassification(tagger, ignore_labels=())), requests(texts))

    assert answer.entities
    assert all(each.text == text[each.start : each.end] for each in answer.entities)
    assert answer.entities[-1].end == len(text)


def test_labels_that_are_no_entity_are_chosen_by_the_user(tagger: Path) -> None:
    handler = TokenClassification(tagger, ignore_labels=("O", "PER", "LOC"))

    answers = run(loaded(handler), requests(TEXTS))

    assert [answer.entities for answer in answers] == [[]] * len(TEXTS)


def test_one_label_is_not_taken_for_several(tagger: Path) -> None:
    with pytest.raises(ConfigurationError, match="ignore_labels"):
        TokenClassification(tagger, ignore_labels="O")


def test_a_text_that_was_cut_says_so(tagger: Path) -> None:
    handler = loaded(TokenClassification(tagger))

    short, long = run(handler, requests(["good film", "good " * MAX_POSITIONS]))

    assert (short.truncated, long.truncated) == (False, True)


def test_the_cost_is_the_number_of_tokens(tagger: Path) -> None:
    handler = loaded(TokenClassification(tagger))

    assert handler.cost(handler.preprocess(TokenClassificationRequest(text="a good film"))) == 5


def test_a_tokenizer_that_knows_no_places_is_refused(
    tagger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)

    with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
        loaded(TokenClassification(tagger))


labels = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]), max_size=12)


@given(labels=labels)
def test_groups_hold_each_token_once_and_in_order(labels: list[str]) -> None:
    groups = list(group_tokens(labels))

    assert [at for _, start, end in groups for at in range(start, end)] == list(range(len(labels)))
    assert all(
        label.removeprefix("B-").removeprefix("I-") == tag
        for tag, start, end in groups
        for label in labels[start:end]
    )


@given(labels=labels)
def test_a_beginning_always_opens_a_group(labels: list[str]) -> None:
    starts = {start for _, start, _ in group_tokens(labels)}

    assert starts >= {at for at, label in enumerate(labels) if label.startswith("B-")}
