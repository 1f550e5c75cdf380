"""Sequences that are computed together give the tokens that each one gives alone."""

import random
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.huggingface.generation.tiny_decoders import (
    N_VOCAB,
    generated,
    tiny_decoder,
    tiny_tokenizer,
)

from mlserve import Advance, MLServeError, ModelError
from mlserve.huggingface.generation.engine import Engine, Memory
from mlserve.huggingface.generation.sampling import Sampling
from mlserve.huggingface.generation.sequences import Prompt, Running
from mlserve.huggingface.generation.sequential import SequentialMemory
from mlserve.huggingface.generation.slots import SlotMemory, groups_alike, has_plain_attention

GREEDY = Sampling(temperature=0)
TOKENIZER = tiny_tokenizer()


def engine_of(kind: str, n_rows: int = 4, n_prompt_tokens: int = 24) -> Engine:
    model = tiny_decoder(kind)
    memory: Memory = (
        SequentialMemory(model, n_rows, 128)
        if kind == "windowed"
        else SlotMemory(model, n_rows, 128)
    )
    return Engine(memory, TOKENIZER, n_prompt_tokens)


def random_prompt(dice: random.Random, longest: int = 60) -> list[int]:
    return [dice.randrange(3, N_VOCAB) for _ in range(dice.randint(1, longest))]


class Book:
    """Runs an engine and writes down what each request got."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.running: dict[Running, list[Any]] = {}
        self.tokens: dict[Running, dict[int, list[int]]] = {}
        self.errors: dict[Running, Exception] = {}
        self.ended: set[Running] = set()

    def admit(self, tokens: list[int], n_new: int = 20, **options: Any) -> Running:
        prompt = Prompt(tokens=tokens, max_tokens=n_new, **{"sampling": GREEDY, **options})
        running = self.engine.admit(prompt)
        self.running[running] = []
        return running

    def step(self) -> None:
        with torch.inference_mode():
            advances: list[Advance] = self.engine.step()
        for advance in advances:
            running = advance.sequence
            assert running not in self.ended
            self.running[running] += advance.chunks
            if advance.error is not None:
                self.errors[running] = advance.error
            if advance.error is not None or advance.is_finished:
                self.ended.add(running)

    def evict(self, running: Running) -> None:
        self.engine.evict(running)
        self.ended.add(running)

    def finish(self) -> None:
        for _ in range(2000):
            if self.ended == self.running.keys():
                assert self.engine.n_running == 0
                return
            self.step()
        raise AssertionError("It does not end.")

    def text(self, running: Running, index: int = 0) -> str:
        return "".join(chunk.text for chunk in self.running[running] if chunk.index == index)


def text_of(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens, skip_special_tokens=True))


def greedy_text(kind: str, prompt: list[int], n: int) -> str:
    return text_of(generated(tiny_decoder(kind), prompt, n))


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "windowed", "eager"])
def test_each_request_gets_what_it_gets_alone_whoever_comes_and_goes(kind: str) -> None:
    dice = random.Random(3)
    book = Book(engine_of(kind))
    wanted = {}
    for number in range(14):
        prompt, n = random_prompt(dice), dice.randint(1, 25)
        running = book.admit(prompt, n)
        wanted[running] = (prompt, n)
        for _ in range(dice.randint(0, 4)):
            book.step()
        if number % 4 == 3:
            leaving = dice.choice([r for r in wanted if r not in book.ended] or [running])
            book.evict(leaving)
            wanted.pop(leaving, None)
    book.finish()

    assert not book.errors
    assert {r: book.text(r) for r in wanted} == {
        r: greedy_text(kind, *given) for r, given in wanted.items()
    }


def test_windows_are_told_from_plain_attention() -> None:
    assert has_plain_attention(tiny_decoder("llama"))
    assert not has_plain_attention(tiny_decoder("windowed"))


def test_a_prompt_that_begins_like_one_of_before_is_read_from_there() -> None:
    dice = random.Random(5)
    system = random_prompt(dice, 40) + [5] * 20
    book = Book(engine_of("llama"))
    first = book.admit([*system, 9, 9])
    book.finish()
    second, third = book.admit([*system, 11]), book.admit([*system, 12, 13])
    book.finish()

    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens >= len(system)
    assert third.usage.cached_tokens >= len(system)
    assert book.text(second) == greedy_text("llama", [*system, 11], 20)
    assert book.text(third) == greedy_text("llama", [*system, 12, 13], 20)


def test_several_choices_cost_one_prompt() -> None:
    book = Book(engine_of("llama"))
    prompt = [7, 8, 9]
    running = book.admit(prompt, 10, n=3, sampling=Sampling(seed=4))
    other = book.admit(prompt, 10)
    book.finish()
    alone = Book(engine_of("llama"))
    singles = [alone.admit(prompt, 10, sampling=Sampling(seed=4 + i)) for i in range(3)]
    alone.finish()

    assert running.usage.prompt_tokens == 3
    assert running.usage.completion_tokens == 30
    assert [book.text(running, i) for i in range(3)] == [alone.text(r) for r in singles]
    assert book.text(other) == greedy_text("llama", prompt, 10)


def test_a_request_waits_for_rows_for_all_its_choices() -> None:
    book = Book(engine_of("llama", n_rows=3))
    first = book.admit([4, 5], 12)
    wide = book.admit([4, 5], 12, n=3)
    book.step()
    assert book.engine.n_running == 1
    book.finish()

    assert [book.text(wide, i) for i in range(3)] == [book.text(first)] * 3


def test_end_tokens_and_stops_end_an_answer_and_are_no_part_of_it() -> None:
    prompt = [30, 31, 32]
    tokens = generated(tiny_decoder("llama"), prompt, 20)
    end = next(token for token in tokens[3:] if token not in tokens[:3])
    book = Book(engine_of("llama"))
    ended = book.admit(prompt, end_tokens=frozenset({end}))
    text = text_of(tokens)
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    stopped = book.admit(prompt, stops=(stop,))
    book.finish()

    assert book.text(ended) == text_of(tokens[: tokens.index(end)])
    assert book.running[ended][-1].finish_reason == "stop"
    assert book.text(stopped) == text[: text.index(stop)]
    assert book.running[stopped][-1].finish_reason == "stop"


def test_the_last_piece_tells_what_was_used_and_why_it_ended() -> None:
    book = Book(engine_of("llama"))
    running = book.admit([3, 4, 5], 7)
    book.finish()

    last = book.running[running][-1]
    assert last.finish_reason == "length"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 7)
    assert all(chunk.usage is None for chunk in book.running[running][:-1])


def test_probabilities_are_those_of_the_model() -> None:
    prompt = [3, 4, 5]
    book = Book(engine_of("llama"))
    running = book.admit(prompt, 4, sampling=Sampling(temperature=0, n_top=3))
    book.finish()

    told = [entry for chunk in book.running[running] for entry in chunk.logprobs]
    tokens = generated(tiny_decoder("llama"), prompt, 4)
    with torch.inference_mode():
        logits = tiny_decoder("llama")(torch.tensor([[*prompt, *tokens]])).logits[0]
    expected = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    assert [entry.logprob for entry in told] == pytest.approx(
        [float(line[token]) for line, token in zip(expected, tokens, strict=True)], abs=1e-4
    )
    assert [len(entry.top_logprobs) for entry in told] == [3] * 4
    assert told[0].top_logprobs[0].logprob == pytest.approx(float(expected[0].max()), abs=1e-4)


class Failing:
    """A memory that fails when it is told to."""

    can_share_prefixes = False

    def __init__(self, memory: Memory) -> None:
        self.n_rows, self.max_length = memory.n_rows, memory.max_length
        self.copy, self.swap = memory.copy, memory.swap
        self._memory = memory
        self.error: Exception | None = None
        self.calls_until_error = 0
        self.poison: int | None = None

    def run(self, pieces: Any, starts: Any) -> torch.Tensor:
        if self.error is not None:
            self.calls_until_error -= 1
            if self.calls_until_error < 0:
                error, self.error = self.error, None
                raise error
        logits = self._memory.run(pieces, starts)
        for row, piece in enumerate(pieces):
            if self.poison in piece:
                logits[row] = torch.nan
        return logits


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_step_that_raised_can_be_called_again(data: st.DataObject) -> None:
    memory = Failing(SlotMemory(tiny_decoder("llama"), 4, 128))
    book = Book(Engine(memory, TOKENIZER, 16))
    dice = random.Random(data.draw(st.integers(0, 1000)))
    greedy = {book.admit(p := random_prompt(dice, 30), 8): p for _ in range(3)}
    seeded = book.admit([5, 6, 7], 8, n=2, sampling=Sampling(seed=1))
    for _ in range(data.draw(st.integers(1, 10))):
        memory.error = MemoryError()
        memory.calls_until_error = data.draw(st.integers(0, 1))
        with suppress(MemoryError):
            book.step()
        memory.error = None
    book.finish()
    calm = Book(engine_of("llama"))
    alone = calm.admit([5, 6, 7], 8, n=2, sampling=Sampling(seed=1))
    calm.finish()

    assert {book.text(r) for r in greedy} == {greedy_text("llama", p, 8) for p in greedy.values()}
    assert [book.text(seeded, i) for i in (0, 1)] == [calm.text(alone, i) for i in (0, 1)]


def test_what_is_no_number_fails_one_request_and_its_neighbours_go_on() -> None:
    memory = Failing(SlotMemory(tiny_decoder("llama"), 4, 128))
    book = Book(Engine(memory, TOKENIZER))
    first, bad, last = book.admit([4, 5, 6]), book.admit([4, 500, 6]), book.admit([8, 9])
    memory.poison = 500
    book.finish()

    assert isinstance(book.errors[bad], ModelError)
    assert book.errors.keys() == {bad}
    assert book.text(first) == greedy_text("llama", [4, 5, 6], 20)
    assert book.text(last) == greedy_text("llama", [8, 9], 20)


class Unfollowable:
    """A grammar that cannot be followed after some tokens."""

    is_finished = False

    def __init__(self) -> None:
        self.n = 0

    def allowed(self) -> torch.Tensor:
        return torch.ones(N_VOCAB, dtype=torch.bool)

    def advance(self, token: int) -> None:
        self.n += 1
        if self.n == 3:
            raise MLServeError("too much")


def test_a_grammar_that_cannot_be_followed_fails_its_request_only() -> None:
    book = Book(engine_of("llama"))
    bad = book.admit([4, 5], make_grammar=Unfollowable)
    good = book.admit([8, 9])
    book.finish()

    assert book.errors.keys() == {bad}
    assert book.text(good) == greedy_text("llama", [8, 9], 20)


@given(st.lists(st.integers(1, 256), max_size=20), st.integers(0, 64))
def test_groups_keep_the_order_and_are_padded_by_no_more_than_allowed(
    sizes: list[int], most_padding: int
) -> None:
    groups = groups_alike(sizes, most_padding)

    assert sum(groups) == len(sizes)
    at = 0
    for n in groups:
        group = sizes[at : at + n]
        at += n
        assert n == 1 or max(group) * n - sum(group) <= most_padding
        assert (
            at == len(sizes)
            or max(sizes[at - n : at + 1]) * (n + 1) - sum(sizes[at - n : at + 1]) > most_padding
        )


def test_a_long_prompt_does_not_have_short_ones_padded_to_its_length() -> None:
    widths = []

    class Watched(SlotMemory):
        def _padded(self, first: int, pieces: Any, starts: Any) -> torch.Tensor:
            widths.append([len(piece) for piece in pieces])
            return super()._padded(first, pieces, starts)

    dice = random.Random(5)
    book = Book(Engine(Watched(tiny_decoder("eager"), 4, 128), TOKENIZER, 100))
    prompts = [[dice.randrange(3, N_VOCAB) for _ in range(n)] for n in (60, 5, 6, 9)]
    running = [book.admit(prompt, 6) for prompt in prompts]
    book.finish()

    assert widths[:2] == [[60], [5, 6, 9]]
    assert [book.text(r) for r in running] == [greedy_text("eager", p, 6) for p in prompts]
