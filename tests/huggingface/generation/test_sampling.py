"""The choice of the next token: each option alone, and none of them for its neighbours."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlserve.huggingface.generation.sampling import Sampler, Sampling, sample

N_VOCAB = 8
LOGITS = torch.tensor([0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5, 1.5])


def drawn(logits: Tensor, n: int = 400, mask: Tensor | None = None, **options: Any) -> Counter[int]:
    """Draw many tokens from one row."""
    sampler = Sampler(Sampling(seed=3, **options), 0, [])
    counts: Counter[int] = Counter()
    for _ in range(n):
        [token] = sample(logits.unsqueeze(0), [sampler], [mask])
        assert token is not None
        counts[token.token] += 1
    return counts


def greedy(logits: Tensor, prompt: list[int], before: list[int], **options: Any) -> int:
    sampler = Sampler(Sampling(temperature=0, **options), 0, prompt)
    for token in before:
        sampler.note(token)
    [chosen] = sample(logits.unsqueeze(0), [sampler], [None])
    assert chosen is not None
    return chosen.token


def test_without_a_temperature_the_likeliest_token_is_chosen() -> None:
    assert greedy(LOGITS, [], []) == 3


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 2}, {3, 2}),
        ({"top_k": 1}, {3}),
        ({"top_p": 0.5}, {3}),
        ({"top_p": 0.7}, {3, 2}),
        ({"top_p": 1e-9}, {3}),
        ({"min_p": 0.3}, {3, 2}),
        ({"min_p": 1.0}, {3}),
        ({"temperature": 0.01}, {3}),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.3}, {3, 2}),
    ],
)
def test_a_cut_leaves_the_likely_tokens(options: dict[str, Any], possible: set[int]) -> None:
    assert set(drawn(LOGITS, **options)) == possible


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    counts = drawn(LOGITS, n=4000)

    expected = torch.softmax(LOGITS, dim=-1)
    for token in range(N_VOCAB):
        assert counts[token] / 4000 == pytest.approx(float(expected[token]), abs=0.03)


def test_penalties_make_what_was_there_less_likely() -> None:
    assert greedy(LOGITS, [], [3], presence_penalty=2.0) == 2
    assert greedy(LOGITS, [], [3], frequency_penalty=0.6) == 3
    assert greedy(LOGITS, [], [3, 3], frequency_penalty=0.6) == 2
    assert greedy(LOGITS, [3], [], presence_penalty=2.0) == 3  # the prompt does not count
    assert greedy(LOGITS, [3], [], repetition_penalty=2.0) == 2  # here it does
    assert greedy(-LOGITS, [5], [], repetition_penalty=4.0) == 4
    assert greedy(-LOGITS.abs() - 1, [0], [], repetition_penalty=4.0) == 6


def test_a_bias_is_added() -> None:
    assert greedy(LOGITS, [], [], bias=((4, 100.0),)) == 4
    assert greedy(LOGITS, [], [], bias=((3, -100.0),)) == 2


def test_what_is_not_allowed_is_not_chosen() -> None:
    mask = torch.tensor([True, False, False, False, True, False, False, False])

    assert set(drawn(LOGITS, mask=mask)) == {0, 4}


def test_where_nothing_can_be_chosen_nothing_is() -> None:
    rows = LOGITS.repeat(4, 1)
    rows[0, 2] = torch.nan
    rows[1] = -torch.inf
    samplers = [Sampler(Sampling(temperature=t), 0, []) for t in (1, 1, 1, 0)]
    nothing = torch.zeros(N_VOCAB, dtype=torch.bool)

    chosen = sample(rows, samplers, [None, None, nothing, None])

    assert chosen[:3] == [None, None, None]
    assert chosen[3] is not None
    assert chosen[3].token == 3


def test_choices_have_seeds_of_their_own() -> None:
    first, second, again = (
        [token.token for _ in range(20) if (token := sample(LOGITS.unsqueeze(0), [s], [None])[0])]
        for s in (
            Sampler(Sampling(seed=1), 0, []),
            Sampler(Sampling(seed=1), 1, []),
            Sampler(Sampling(seed=2), 0, []),
        )
    )

    assert first != second
    assert second == again


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63 - 1])
def test_any_seed_is_one(seed: int) -> None:
    assert Sampler(Sampling(seed=seed), 127, []).generator is not None


def test_probabilities_are_told_as_the_model_gave_them() -> None:
    options = Sampling(temperature=0, bias=((4, 100.0),), n_top=2)
    [chosen] = sample(LOGITS.unsqueeze(0), [Sampler(options, 0, [])], [None])

    expected = torch.log_softmax(LOGITS, dim=-1)
    assert chosen is not None
    assert chosen.token == 4
    assert chosen.logprob == pytest.approx(float(expected[4]))
    assert [token for token, _ in chosen.top] == [3, 2]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.builds(
            Sampling,
            temperature=st.sampled_from([0.0, 0.7, 1.0]),
            top_p=st.sampled_from([0.3, 1.0]),
            top_k=st.sampled_from([0, 2]),
            presence_penalty=st.sampled_from([0.0, 1.0]),
            seed=st.integers(0, 5),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_is_chosen_as_it_is_alone(rows: list[Sampling]) -> None:
    logits = torch.stack([LOGITS.roll(number) for number in range(len(rows))])

    def samplers() -> list[Sampler]:
        made = [Sampler(options, 0, []) for options in rows]
        for sampler in made:
            sampler.note(3)
        return made

    together = sample(logits, samplers(), [None] * len(rows))
    alone = [
        sample(logits[number : number + 1], [sampler], [None])[0]
        for number, sampler in enumerate(samplers())
    ]

    assert together == alone
