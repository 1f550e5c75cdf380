"""Texts that are written token by token within a grammar, by a model that knows nothing."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlserve import InvalidInputError
from mlserve.huggingface.generation.grammar import Grammar, GrammarCompiler
from mlserve.tasks.generation import ResponseFormat

N_VOCAB = 512  # more logits than there are tokens, as models have

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([json.dumps({"name": "Ada", "age": 36})] * 3, trainer)
    fast: type[Any] = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = fast(tokenizer_object=made, eos_token="<end>")  # noqa: S106 - of a vocabulary
    return tokenizer


@pytest.fixture(scope="module")
def compiler(tokenizer: PreTrainedTokenizerFast) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, N_VOCAB)


def of_schema(compiler: GrammarCompiler, schema: dict[str, Any]) -> Grammar:
    grammar = compiler.of_format(ResponseFormat(type="json_schema", json_schema=schema))
    assert grammar is not None
    return grammar


def tokens_of(grammar: Grammar, end: int, seed: int, most: int = 300) -> Iterator[int]:
    """Choose among the allowed tokens until the text ends."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(most):
        allowed = grammar.allowed()
        assert allowed.shape == (N_VOCAB,)
        token = int(torch.multinomial(allowed.float(), 1, generator=random))
        if token == end:
            return
        grammar.advance(token)
        yield token
        if grammar.is_finished:
            return


def text_of(
    grammar: Grammar, tokenizer: PreTrainedTokenizerFast, seed: int, most: int = 300
) -> str:
    tokens = list(tokens_of(grammar, int(tokenizer.eos_token_id), seed, most))
    return str(tokenizer.decode(tokens))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_chosen_fits_the_schema(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    person = json.loads(text_of(of_schema(compiler, PERSON), tokenizer, seed))

    assert person.keys() == {"name", "age"}
    assert len(person["name"]) <= 8
    assert 0 <= person["age"] <= 150


def test_any_object_is_an_object(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    grammar = compiler.of_format(ResponseFormat(type="json_object"))
    assert grammar is not None

    assert text_of(grammar, tokenizer, seed=1).startswith("{")


def test_any_text_needs_no_grammar(compiler: GrammarCompiler) -> None:
    assert compiler.of_format(ResponseFormat()) is None


def test_a_regex_is_matched_as_a_whole(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = text_of(compiler.of_regex(r"[0-9]{3}-[a-f]{2}"), tokenizer, seed=2)

    assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", text)


def test_two_texts_of_one_grammar_go_their_own_ways(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    first, second = of_schema(compiler, PERSON), of_schema(compiler, PERSON)
    text_of(first, tokenizer, seed=3)
    third = second.copy()

    assert json.loads(text_of(second, tokenizer, seed=4)) == json.loads(
        text_of(third, tokenizer, seed=4)
    )


def test_a_token_that_is_not_allowed_is_refused(compiler: GrammarCompiler) -> None:
    grammar = of_schema(compiler, PERSON)
    refused = int((~grammar.allowed()).nonzero()[0])

    with pytest.raises(InvalidInputError):
        grammar.advance(refused)


BOMBS: dict[str, dict[str, Any]] = {
    "repetitions of repetitions": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
    "a long array": {"type": "array", "minItems": 10**8, "items": {"type": "integer"}},
    "a long string": {"type": "string", "minLength": 10**7},
    "many alternatives": {
        "anyOf": [
            {"type": "object", "properties": {f"k{i}{j}": {"type": "string"} for j in range(5)}}
            for i in range(200)
        ]
    },
    "references to references": {
        "$defs": {
            **{f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 4} for i in range(20)},
            "a20": {"type": "string"},
        },
        "$ref": "#/$defs/a0",
    },
    "much at once": {"allOf": [{"properties": {f"p{i}": {"type": "string"}}} for i in range(500)]},
}


@pytest.mark.parametrize("schema", BOMBS.values(), ids=BOMBS)
def test_a_bomb_costs_little_whether_it_is_refused_or_not(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, schema: dict[str, Any]
) -> None:
    started = time.monotonic()
    try:
        text_of(of_schema(compiler, schema), tokenizer, seed=5, most=20)
    except InvalidInputError as exc:
        assert "schema" in str(exc) or "response_format" in str(exc)  # noqa: PT017 - either is right
    assert time.monotonic() - started < 3.0


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"type": "nonsense"}, "nonsense"),
    "no regex": ({"type": "string", "pattern": "("}, "regex"),
    "a reference back": ({"type": "string", "pattern": r"(a)\1"}, "regex"),
    "a reference elsewhere": ({"$ref": "http://127.0.0.1:9/x"}, "http://127.0.0.1:9/x"),
    "a reference to itself": ({"$ref": "#"}, "cannot be used"),
    "too deep": (nested(100_000), "deep"),
    "too large": ({"description": "x" * 100_000}, "bytes"),
}


@pytest.mark.parametrize(("schema", "words"), WRONG.values(), ids=WRONG)
def test_a_schema_that_cannot_be_used_is_refused_in_words(
    compiler: GrammarCompiler, schema: dict[str, Any], words: str
) -> None:
    wanted = ResponseFormat.model_construct(type="json_schema", json_schema=schema)

    with pytest.raises(InvalidInputError, match=re.escape(words)):
        compiler.of_format(wanted)


def test_only_the_last_grammars_are_kept(compiler: GrammarCompiler) -> None:
    for number in range(200):
        compiler.of_regex(f"a{{{number + 1}}}")

    assert "64 grammars" in repr(compiler)
