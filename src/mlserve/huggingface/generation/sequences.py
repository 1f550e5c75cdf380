"""What runs in an engine: a request with its choices, each in a row of the memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlserve.handler import Call
from mlserve.huggingface.generation.grammar import Grammar
from mlserve.huggingface.generation.sampling import Sampled, Sampler, Sampling
from mlserve.huggingface.generation.tools import ToolReader
from mlserve.huggingface.generation.writing import TextWriter, told_logprobs
from mlserve.tasks.generation import FinishReason, GenerationChunk, Usage

__all__ = ["Prompt", "Row", "Running"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request as an engine takes it: checked, and made of tokens."""

    tokens: list[int]
    """At least one, each within the vocabulary."""
    max_tokens: int
    """How many new ones there may be; with the prompt no more than the context holds."""
    sampling: Sampling = field(default_factory=Sampling)
    """How they are chosen."""
    n: int = 1
    """How many choices there are."""
    stops: tuple[str, ...] = ()
    """Texts that end a choice."""
    end_tokens: frozenset[int] = frozenset()
    """Tokens that end a choice, and are no part of it."""
    make_grammar: Callable[[], Grammar | None] = lambda: None
    """Gives the state of what the text has to look like; once for each choice."""
    echo: str = ""
    """What each choice begins with."""
    make_reader: Callable[[], ToolReader | None] = lambda: None
    """Gives what tells calls of tools from the text; once for each choice."""


class Row:
    """
    One choice of a request.

    Args:
        running: The request.
        index: Which choice.
        tokenizer: The model's.
    """

    __slots__ = (
        "_tokenizer",
        "grammar",
        "index",
        "n_cached",
        "new",
        "reader",
        "running",
        "sampler",
        "writer",
    )

    def __init__(self, running: "Running", index: int, tokenizer: Any) -> None:
        prompt = running.prompt
        self._tokenizer = tokenizer
        self.running = running
        self.index = index
        self.n_cached = 0
        """How many of its tokens are in the memory."""
        self.new: list[int] = []
        """The tokens that were chosen."""
        self.sampler = Sampler(prompt.sampling, index, prompt.tokens)
        self.reader = prompt.make_reader()
        self.writer = TextWriter(
            tokenizer, prompt.tokens, prompt.stops, keeps_special=self.reader is not None
        )
        self.grammar = prompt.make_grammar()

    @property
    def unread(self) -> list[int]:
        """The tokens that the model has not seen yet, at least one."""
        prompt = self.running.prompt.tokens
        if self.n_cached < len(prompt):
            return prompt[self.n_cached :]
        return self.new[self.n_cached - len(prompt) :]

    def cached(self) -> list[int]:
        """Give the tokens that are in the memory."""
        return [*self.running.prompt.tokens, *self.new][: self.n_cached]

    def take(self, sampled: Sampled) -> GenerationChunk | None:
        """
        Take in the token that was chosen.

        Returns:
            What it brings, if anything; the last one comes with the reason of the end.
        """
        prompt = self.running.prompt
        text = "" if self.new else prompt.echo
        self.running.usage.completion_tokens += 1
        reason: FinishReason | None = None
        logprobs = None
        if sampled.token in prompt.end_tokens:
            reason = "stop"
        else:
            self._append(sampled.token)
            text += self.writer.write(sampled.token)
            logprobs = told_logprobs(self._tokenizer, sampled)
            if self.writer.is_stopped or (self.grammar is not None and self.grammar.is_finished):
                reason = "stop"
            elif len(self.new) >= prompt.max_tokens:
                reason = "length"
        if reason is not None:
            text += self.writer.finish()
        calls: list[dict[str, Any]] = []
        if self.reader is not None:
            text, calls, reason = self.reader.told(text, reason)
        if not text and not calls and logprobs is None and reason is None:
            return None
        return GenerationChunk(
            index=self.index,
            text=text,
            logprobs=logprobs,
            tool_calls=calls or None,
            finish_reason=reason,
        )

    def _append(self, token: int) -> None:
        self.sampler.note(token)
        self.new.append(token)
        if self.grammar is not None:
            self.grammar.advance(token)

    def __repr__(self) -> str:
        return f"<Row {self.index}, {self.n_cached} tokens in memory, {len(self.new)} new>"


@dataclass(slots=True, eq=False)
class Running:
    """A request that runs; what `admit` gives."""

    prompt: Prompt
    rows: list[Row] = field(default_factory=list)
    """Its choices that have not ended; only the first one until the prompt was read."""
    n_ended: int = 0
    """How many choices have ended."""
    usage: Usage = field(default_factory=Usage)
    """What it took so far."""
    call: Call | None = None
    """Whose request it is."""

    def note_usage(self) -> None:
        """Note for log and metrics what it took so far."""
        if self.call is not None:
            self.call.annotate(
                prompt_tokens=self.usage.prompt_tokens,
                completion_tokens=self.usage.completion_tokens,
            )
