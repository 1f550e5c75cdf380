"""
What a text has to look like, as a mask over the next token: JSON, a JSON schema, a regex.

The masks come from the package `llguidance` (`pip install 'mlserve[structured]'`).
"""

import importlib.util
import json
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mlserve.errors import InvalidInputError
from mlserve.observability.loggers import get_logger
from mlserve.tasks.generation import ResponseFormat

__all__ = ["Grammar", "GrammarCompiler"]

logger = get_logger(__name__)

_MAX_SCHEMA_BYTES = 64 * 1024
_MAX_DEPTH = 32
_N_KEPT = 64
# Half of what the library allows: some 50 ms for a grammar, some 10 ms for a token.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 25_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
}
_ANY_OBJECT = {"type": "object"}
# Where a model may choose, it may choose white space for ever.
_WRITING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """
    How far one text has come in its grammar. In one thread at a time.

    Args:
        matcher: The library's own state.
        n_vocab: How many logits the model gives.
    """

    def __init__(self, matcher: Any, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """
        Say which tokens may come next.

        Returns:
            bool, shape (vocabulary,); the end of the text is among them once it may end.

        Raises:
            InvalidInputError: If the grammar takes too long to follow.
        """
        biases = bytearray(self._matcher.compute_logit_bias())
        self._require_sound()
        allowed = torch.zeros(self._n_vocab, dtype=torch.bool)
        known = torch.frombuffer(biases, dtype=torch.uint8)[: self._n_vocab] > 0
        allowed[: len(known)] = known
        return allowed

    def advance(self, token: int) -> None:
        """
        Take the token that came.

        Raises:
            InvalidInputError: If it was not allowed, or the grammar takes too long to follow.
        """
        self._matcher.consume_token(token)
        self._require_sound()

    def copy(self) -> "Grammar":
        """Give one that goes its own way from here."""
        return Grammar(self._matcher.deep_copy(), self._n_vocab)

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            logger.warning("grammar.failed: %s", _first_words(self._matcher))
            raise InvalidInputError("`response_format` asks for more than can be followed.")

    def __repr__(self) -> str:
        return f"<Grammar {'finished' if self.is_finished else 'open'}>"


class GrammarCompiler:
    """
    Makes grammars for one tokenizer, and keeps the last ones. In one thread at a time.

    Args:
        tokenizer: The model's.
        n_vocab: How many logits the model gives; may be more than there are tokens.

    Raises:
        ImportError: If llguidance is not installed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, n_vocab: int) -> None:
        import llguidance
        import llguidance.hf

        self._library = llguidance
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=max(n_vocab, len(tokenizer))
        )
        self._limits = llguidance.LLParserLimits(**_LIMITS)
        self._n_vocab = n_vocab
        self._kept: dict[str, Any] = {}

    @staticmethod
    def is_available() -> bool:
        """Whether llguidance is installed."""
        return importlib.util.find_spec("llguidance") is not None

    def of_format(self, wanted: ResponseFormat) -> Grammar | None:
        """
        Give the grammar of a request; `None` = any text.

        Raises:
            InvalidInputError: If the schema cannot be compiled, or is too large.
        """
        if wanted.type == "text":
            return None
        schema = _ANY_OBJECT if wanted.json_schema is None else wanted.json_schema
        if _depth(schema) > _MAX_DEPTH:
            raise InvalidInputError(f"The JSON schema is nested more than {_MAX_DEPTH} deep.")
        text = json.dumps(schema)
        if len(text) > _MAX_SCHEMA_BYTES:
            raise InvalidInputError(
                f"The JSON schema has {len(text)} bytes; at most {_MAX_SCHEMA_BYTES} are taken."
            )
        read = self._library.LLMatcher.grammar_from_json_schema
        return self._compiled(read(text, overrides=_WRITING))

    def of_regex(self, regex: str) -> Grammar:
        """
        Give the grammar of texts that a regex matches as a whole.

        Raises:
            InvalidInputError: If the regex cannot be compiled.
        """
        return self._compiled(self._library.LLMatcher.grammar_from_regex(regex))

    def _compiled(self, grammar: str) -> Grammar:
        matcher = self._kept.pop(grammar, None)
        if matcher is None:
            matcher = self._library.LLMatcher(
                self._tokenizer, grammar, log_level=0, limits=self._limits
            )
            if not matcher.is_error():
                matcher.compute_logit_bias()  # the first one shows what no text can be
            if matcher.is_error():
                raise InvalidInputError(
                    f"The JSON schema or regex cannot be used: {_first_words(matcher)}"
                )
        self._kept[grammar] = matcher
        if len(self._kept) > _N_KEPT:
            del self._kept[next(iter(self._kept))]
        return Grammar(matcher.deep_copy(), self._n_vocab)

    def __repr__(self) -> str:
        return f"<GrammarCompiler with {len(self._kept)} grammars>"


def _first_words(matcher: Any) -> str:
    return " ".join(str(matcher.get_error()).partition("<state>")[0].split())[:200]


def _depth(value: Any) -> int:
    """Say how deep lists and dicts are nested, without recursion."""
    depth, level = 0, [value]
    while level := [
        child
        for parent in level
        if isinstance(parent, dict | list)
        for child in (parent.values() if isinstance(parent, dict) else parent)
    ]:
        depth += 1
    return depth
