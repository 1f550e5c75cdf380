"""Rows of different lengths are computed at once, each as if it were alone."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.huggingface.generation.tiny_decoders import KINDS, generated, tiny_decoder

from mlserve.huggingface.generation.packing import Kept, parts_of
from mlserve.huggingface.generation.slots import SlotMemory

ROWS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=8)
"""How many new tokens each row has, and how many it holds."""


@given(ROWS)
def test_each_token_sees_what_stands_before_it_in_its_own_row(rows: list[tuple[int, int]]) -> None:
    sizes, starts = [size for size, _ in rows], [start for _, start in rows]
    places = [start + i for size, start in rows for i in range(size)]
    owners = [row for row, size in enumerate(sizes) for _ in range(size)]

    parts = parts_of(sizes, starts, torch.tensor(places))

    at = 0
    for part in parts:
        assert part.at == at
        for token in range(part.n_rows * part.n_tokens):
            row, column = divmod(token, part.n_tokens)
            assert owners[at] == part.first + row
            if part.mask is None:  # what stands before, the token itself included
                seen = list(range(column + 1))
            else:
                seen = part.mask[row, 0, column].nonzero().flatten().tolist()
            assert seen == list(range(places[at] + 1))
            assert part.length > places[at]
            at += 1
    assert at == len(places)


@pytest.mark.parametrize(
    ("kind", "packs"), [("llama", True), ("qwen", True), ("gpt2", True), ("eager", False)]
)
def test_models_are_packed_whose_attention_can_be_asked_for(kind: str, packs: bool) -> None:
    assert SlotMemory(tiny_decoder(kind), 4, 64).packs is packs


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2"])
def test_one_pass_computes_what_the_rows_give_alone(kind: str) -> None:
    memory, model = SlotMemory(tiny_decoder(kind), 5, 64), tiny_decoder(kind)
    texts = [[5], [7, 8, 9, 10], [3] * 20, [6, 4], [9, 8, 7]]
    held = [0, 3, 12, 0, 2]
    first = [text[:n] or text[:1] for text, n in zip(texts, held, strict=True)]
    memory.run(first, [0] * len(texts))

    found = memory.run([text[n:] for text, n in zip(texts, held, strict=True)], held)

    with torch.inference_mode():
        alone = torch.cat([model(torch.tensor([text])).logits[:, -1] for text in texts])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


def test_a_prompt_that_joins_is_read_in_the_pass_in_which_others_write() -> None:
    model = KINDS["llama"]().eval()
    shapes: list[Any] = []
    memory = SlotMemory(model, 3, 64)
    model.register_forward_pre_hook(
        lambda _module, _args, given: shapes.append(tuple(given["input_ids"].shape)),
        with_kwargs=True,
    )
    memory.run([[4, 5], [6]], [0, 0])

    memory.run([[7], [8], [3, 4, 5, 6]], [2, 1, 0])

    assert shapes == [(1, 3), (1, 6)]


def test_a_model_that_is_packed_is_the_same_for_everybody_else() -> None:
    fresh = KINDS["llama"]
    torch.manual_seed(7)
    untouched = fresh().eval()
    torch.manual_seed(7)
    packed = fresh().eval()

    assert SlotMemory(packed, 2, 64).packs
    assert SlotMemory(packed, 2, 64).packs  # once more

    assert generated(packed, [5, 6, 7], 12) == generated(untouched, [5, 6, 7], 12)


def test_a_memory_that_cannot_be_packed_leaves_another_one_of_its_model_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(7)
    model = KINDS["llama"]().eval()
    first = SlotMemory(model, 2, 64)
    before = first.run([[5, 6, 7]], [0])
    with monkeypatch.context() as patch:
        patch.setattr(SlotMemory, "_packed", lambda *_: 1 / 0)
        second = SlotMemory(model, 2, 64)

    assert (first.packs, second.packs) == (True, False)
    torch.testing.assert_close(first.run([[5, 6, 7]], [0]), before)
    torch.testing.assert_close(second.run([[5, 6, 7]], [0]), before, atol=1e-4, rtol=1e-4)


def test_memory_that_runs_out_is_no_reason_to_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(SlotMemory, "_packed", run_out)

    with pytest.raises(MemoryError):
        SlotMemory(KINDS["llama"]().eval(), 2, 64)


@pytest.mark.parametrize("is_wrong", [False, True])
def test_a_model_that_wants_keys_for_something_else_is_computed_in_padded_rows(
    monkeypatch: pytest.MonkeyPatch, is_wrong: bool
) -> None:
    torch.manual_seed(7)
    model = KINDS["llama"]().eval()
    attend = Kept.attend

    def attend_otherwise(self: Kept, module: Any, query: torch.Tensor, **options: Any) -> Any:
        if is_wrong:
            return attend(self, module, query, **options).flip(1)
        raise AttributeError("A tensor was wanted.")

    monkeypatch.setattr(Kept, "attend", attend_otherwise)

    memory = SlotMemory(model, 2, 64)

    assert not memory.packs
    assert model.config._attn_implementation == "sdpa"
    with torch.inference_mode():
        alone = model(torch.tensor([[5, 6, 7]])).logits[:, -1]
    torch.testing.assert_close(memory.run([[5, 6, 7]], [0]), alone, atol=1e-4, rtol=1e-4)
