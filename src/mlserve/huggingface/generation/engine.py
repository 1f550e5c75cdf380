"""
The engine: which sequences read their prompts in a step, and which get their next token.

Scheduling by iteration follows Orca (Yu et al. 2022, OSDI '22): a request enters at the next step
and leaves when it ends. In each step prompts are read up to a budget of tokens, so that those who
wait for their next token never wait long.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from mlserve.errors import InvalidInputError, MLServeError, ModelError
from mlserve.huggingface.generation.sampling import Sampled, sample
from mlserve.huggingface.generation.sequences import Prompt, Row, Running
from mlserve.observability.loggers import get_logger
from mlserve.stepped import Advance

__all__ = ["Engine", "Memory"]

logger = get_logger(__name__)

_Token = Sampled | MLServeError | None
"""What was chosen, why nothing can be, or that the logits are no numbers."""
_Line = tuple[list[Row], list[_Token]]
"""Rows and their tokens: one that writes, or all choices of one that has read its prompt."""

_LEAST_PREFIX = 16  # tokens: a shorter one is computed as fast as it is copied


class Memory(Protocol):
    """Where sequences are kept, and how their next logits are computed."""

    n_rows: int
    max_length: int
    can_share_prefixes: bool

    def run(self, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Compute the next logits of the first rows."""

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange what two rows hold."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Give a row what another one holds."""


class Engine:
    """
    Runs the sequences of one model together. In the replica's thread.

    The rows of those who get tokens come first, then those of who still reads a prompt, then the
    free ones, which keep what they held: a prompt that begins like one of before is read from
    there.

    Args:
        memory: Keeps and computes them.
        tokenizer: The model's.
        n_prompt_tokens: How many tokens of prompts are read in a step.
    """

    def __init__(self, memory: Memory, tokenizer: Any, n_prompt_tokens: int = 256) -> None:
        self._memory = memory
        self._tokenizer = tokenizer
        self._n_prompt_tokens = n_prompt_tokens
        self._rows: list[Row] = []
        self._n_writing = 0
        self._waiting: deque[Running] = deque()
        self._held: list[list[int]] = [[] for _ in range(memory.n_rows)]

    @property
    def n_running(self) -> int:
        """How many choices are in rows."""
        return len(self._rows)

    def admit(self, prompt: Prompt) -> Running:
        """Take in a request; it begins at the next step that has rows for all its choices."""
        running = Running(prompt)
        self._waiting.append(running)
        return running

    def evict(self, running: Running) -> None:
        """Forget a request."""
        if running in self._waiting:
            self._waiting.remove(running)
        for row in list(running.rows):
            self._free(row)
        running.rows.clear()

    def step(self) -> list[Advance]:
        """
        Read a piece of the prompts and give every other sequence its next token.

        What it raises leaves the sequences as they were.
        """
        self._begin_waiting()
        reading, pieces = self._pieces()
        states = [(row, row.sampler.generator.get_state()) for row in self._seeded()]
        try:
            lines = self._computed(reading, pieces)
        except BaseException:
            for row, state in states:
                if row.sampler.generator is not None:
                    row.sampler.generator.set_state(state)
            raise
        return self._commit(reading, pieces, lines)

    def _begin_waiting(self) -> None:
        while self._waiting:
            running = self._waiting[0]
            reserved = sum(r.prompt.n - len(r.rows) - r.n_ended for r in self._distinct())
            if len(self._rows) + reserved + running.prompt.n > self._memory.n_rows:
                return
            self._waiting.popleft()
            row = Row(running, 0, self._tokenizer)
            running.rows.append(row)
            running.usage.prompt_tokens = len(running.prompt.tokens)
            self._share_prefix(row)
            self._rows.append(row)

    def _distinct(self) -> set[Running]:
        return {row.running for row in self._rows}

    def _share_prefix(self, row: Row) -> None:
        """Take over what some row holds of the beginning of a prompt."""
        if not self._memory.can_share_prefixes:
            return
        at, prompt = len(self._rows), row.running.prompt.tokens
        held = [*(other.cached() for other in self._rows), *self._held[at:]]
        n_common = [_n_common(tokens, prompt) for tokens in held]
        best = at if n_common[at] == max(n_common) else n_common.index(max(n_common))
        n_shared = min(n_common[best], len(prompt) - 1)  # the last one's logits are needed
        if n_shared < _LEAST_PREFIX:
            return
        if best != at:
            self._memory.copy(best, at, n_shared)
        row.n_cached = n_shared
        row.running.usage.cached_tokens = n_shared

    def _pieces(self) -> tuple[list[Row], list[list[int]]]:
        """Say which rows read their prompts in this step, and which part."""
        left, rows, pieces = self._n_prompt_tokens, [], []
        for row in self._rows[self._n_writing :]:
            if left <= 0:
                break
            pieces.append(row.unread[:left])
            rows.append(row)
            left -= len(pieces[-1])
        return rows, pieces

    def _seeded(self) -> list[Any]:
        return [row for row in self._rows if row.sampler.generator is not None]

    def _computed(self, reading: list[Row], pieces: list[list[int]]) -> list[_Line]:
        """Choose the next token of each row that writes, and of those at their prompts' ends."""
        writing = self._rows[: self._n_writing]
        if not writing and not reading:
            return []
        logits = self._memory.run(
            [*(row.unread for row in writing), *pieces],
            [row.n_cached for row in (*writing, *reading)],
        )
        tokens = _sampled(logits[: len(writing)], writing)
        lines: list[_Line] = [([row], [token]) for row, token in zip(writing, tokens, strict=True)]
        for row, piece, line in zip(reading, pieces, logits[len(writing) :], strict=True):
            prompt = row.running.prompt
            if row.n_cached + len(piece) == len(prompt.tokens):
                others = [Row(row.running, i, self._tokenizer) for i in range(1, prompt.n)]
                choices = [row, *others]
                lines.append((choices, _sampled(line.expand(prompt.n, -1), choices)))
        return lines

    def _commit(
        self, reading: list[Row], pieces: list[list[int]], lines: list[_Line]
    ) -> list[Advance]:
        """Take in what was computed."""
        for row in self._rows[: self._n_writing]:
            row.n_cached += 1
        for row, piece in zip(reading, pieces, strict=True):
            row.n_cached += len(piece)
        for rows, _ in lines:
            if rows[0] in reading:
                self._start_writing(rows)
        news: dict[int, Advance] = {}
        for rows, tokens in lines:
            for row, token in zip(rows, tokens, strict=True):
                self._take(row, token, news)
        return list(news.values())

    def _start_writing(self, choices: list[Row]) -> None:
        """Move a row whose prompt was read among those that write, and copy it for the others."""
        row = choices[0]
        self._swap(self._rows.index(row), self._n_writing)
        self._n_writing += 1
        row.running.rows = choices
        for other in choices[1:]:
            target = len(self._rows)
            self._memory.copy(self._rows.index(row), target, row.n_cached)
            other.n_cached = row.n_cached
            self._rows.append(other)
            self._swap(target, self._n_writing)
            self._n_writing += 1

    def _take(self, row: Row, token: _Token, news: dict[int, Advance]) -> None:
        running = row.running
        advance = news.setdefault(id(running), Advance(running))
        if advance.error is not None:
            return
        try:
            if not isinstance(token, Sampled):
                raise token or ModelError("The model gave what is no number.")
            chunk = row.take(token)
        except MLServeError as exc:
            advance.error = exc
            self.evict(running)
            return
        if chunk is None:
            return
        advance.chunks = [*advance.chunks, chunk]
        if chunk.finish_reason is not None:
            self._end(row)
            advance.is_finished = running.n_ended == running.prompt.n
            if advance.is_finished:
                chunk.usage = running.usage

    def _end(self, row: Row) -> None:
        row.running.n_ended += 1
        row.running.rows.remove(row)
        self._free(row)

    def _free(self, row: Row) -> None:
        """Take a row out; what it holds stays behind the rows that run."""
        if row not in self._rows:
            return
        at = self._rows.index(row)
        if at < self._n_writing:
            self._swap(at, self._n_writing - 1)
            at, self._n_writing = self._n_writing - 1, self._n_writing - 1
        self._swap(at, len(self._rows) - 1)
        self._rows.pop()
        self._held[len(self._rows)] = row.cached()

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        rows = self._rows
        self._memory.swap(one, other, max(rows[one].n_cached, rows[other].n_cached))
        rows[one], rows[other] = rows[other], rows[one]

    def __repr__(self) -> str:
        return f"<Engine {self._n_writing} of {len(self._rows)} rows write>"


def _sampled(logits: Tensor, rows: Sequence[Row]) -> list[_Token]:
    """Choose a token for each row; an exception stands where its grammar cannot be followed."""
    masks: list[Tensor | None] = []
    errors: dict[int, MLServeError] = {}
    for number, row in enumerate(rows):
        mask = None
        if row.grammar is not None:
            try:
                mask = row.grammar.allowed()
            except InvalidInputError as exc:
                errors[number] = exc
        masks.append(mask)
    tokens = sample(logits, [row.sampler for row in rows], masks)
    return [errors.get(number, token) for number, token in enumerate(tokens)]


def _n_common(one: list[int], other: list[int]) -> int:
    """Say how many tokens two lists have in common at their beginnings."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
