"""
Choosing the next token of each sequence: penalties, temperature, cuts and chance.

Rows without an option cost nothing for it; what is left is done for all rows at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Sampled", "Sampler", "Sampling", "sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of one request are chosen."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = all tokens."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()
    """What is added to the logits of tokens."""
    seed: int | None = None
    """Choice i is sampled from seed + i."""
    n_top: int | None = None
    """How many likely tokens to tell of beside the chosen one; `None` = no probabilities."""

    @property
    def has_penalties(self) -> bool:
        """Whether it matters which tokens there were before."""
        penalties = (self.presence_penalty, self.frequency_penalty)
        return any(penalties) or self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token that was chosen."""

    token: int
    logprob: float | None = None
    """Its logarithmic probability before any option, if asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with theirs, the most likely first."""


class Sampler:
    """
    What the choice of one sequence's next token depends on.

    Args:
        options: The request's.
        choice: Which of the request's answers it is.
        prompt: The prompt's tokens, for the repetition penalty.
    """

    def __init__(self, options: Sampling, choice: int, prompt: Sequence[int]) -> None:
        self.options = options
        self.generator: torch.Generator | None = None
        """Its own chance, if the request has a seed."""
        if options.seed is not None:
            self.generator = torch.Generator().manual_seed((options.seed + choice) % 2**63)
        self._prompt = frozenset(prompt) if options.repetition_penalty != 1.0 else frozenset()
        self._counts: dict[int, int] = {}

    def note(self, token: int) -> None:
        """Take in that a token was chosen."""
        if self.options.has_penalties:
            self._counts[token] = self._counts.get(token, 0) + 1

    def adjust(self, logits: Tensor) -> None:
        """Apply penalties and biases to one row, float32, shape (vocabulary,), in place."""
        options = self.options
        if options.repetition_penalty != 1.0 and (seen := self._prompt | self._counts.keys()):
            ids = torch.tensor(sorted(seen), device=logits.device)
            values, penalty = logits[ids], options.repetition_penalty
            logits[ids] = torch.where(values > 0, values / penalty, values * penalty)
        if self._counts and (options.presence_penalty or options.frequency_penalty):
            ids = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(list(self._counts.values()), device=logits.device)
            logits[ids] -= options.presence_penalty + options.frequency_penalty * counts
        if options.bias:
            ids = torch.tensor([token for token, _ in options.bias], device=logits.device)
            logits[ids] += torch.tensor([value for _, value in options.bias], device=logits.device)

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` changes anything."""
        return self.options.has_penalties or bool(self.options.bias)

    def __repr__(self) -> str:
        return f"<Sampler {self.options}>"


def sample(
    logits: Tensor, samplers: Sequence[Sampler], masks: Sequence[Tensor | None]
) -> list[Sampled | None]:
    """
    Choose a token for each row.

    Args:
        logits: float32, shape (rows, vocabulary); not changed.
        samplers: One per row.
        masks: Per row which tokens are allowed, bool, shape (vocabulary,); `None` = all.

    Returns:
        One per row; `None` where the logits hold what is no number, or nothing is allowed.
    """
    adjusted = logits
    if any(sampler.adjusts for sampler in samplers) or any(mask is not None for mask in masks):
        adjusted = logits.clone()
        for row, (sampler, mask) in enumerate(zip(samplers, masks, strict=True)):
            sampler.adjust(adjusted[row])
            if mask is not None:
                adjusted[row].masked_fill_(~mask.to(adjusted.device), -torch.inf)
    best, tokens = adjusted.max(dim=-1)  # of a row with what is no number that is the largest
    sound = best.isfinite()
    if adjusted is not logits:  # a mask may have covered it
        sound &= ~logits.isnan().any(dim=-1)
    is_sound = sound.tolist()
    chosen: list[int] = tokens.tolist()
    drawn = [
        row
        for row, sampler in enumerate(samplers)
        if is_sound[row] and sampler.options.temperature > 0
    ]
    if drawn:
        draws = _draw(adjusted[drawn], [samplers[row] for row in drawn])
        for row, token in zip(drawn, draws, strict=True):
            chosen[row] = token
    return [
        _told(logits[row], chosen[row], sampler.options.n_top) if is_sound[row] else None
        for row, sampler in enumerate(samplers)
    ]


def _draw(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Draw a token per row from what temperature and cuts leave of the distribution."""
    options = [sampler.options for sampler in samplers]
    device = logits.device
    temperatures = torch.tensor([o.temperature for o in options], device=device)
    probabilities = torch.softmax(logits / temperatures.clamp(min=1e-5).unsqueeze(1), dim=-1)
    if any(o.top_k or o.top_p < 1 or o.min_p for o in options):
        probabilities = _cut(probabilities, options)
    alone = [row for row, sampler in enumerate(samplers) if sampler.generator is not None]
    tokens: list[int] = torch.multinomial(probabilities, 1).flatten().tolist()
    for row in alone:  # on the CPU, so that a seed means the same everywhere
        weights = probabilities[row].cpu()
        tokens[row] = int(torch.multinomial(weights, 1, generator=samplers[row].generator))
    return tokens


def _cut(probabilities: Tensor, options: Sequence[Sampling]) -> Tensor:
    """
    Set the probabilities of unlikely tokens to 0; the most likely one always stays.

    Source:
        top-k: Fan et al. 2018, arXiv:1805.04833; top-p: Holtzman et al. 2020, arXiv:1904.09751;
        min-p: Nguyen et al. 2024, arXiv:2407.01082.
    """
    device, n_tokens = probabilities.device, probabilities.shape[1]
    ordered, order = probabilities.sort(dim=-1, descending=True)
    place = torch.arange(n_tokens, device=device)
    top_k = torch.tensor([o.top_k or n_tokens for o in options], device=device).unsqueeze(1)
    ordered = torch.where(place < top_k, ordered, 0.0)
    top_p = torch.tensor([o.top_p for o in options], device=device).unsqueeze(1)
    total = ordered.sum(dim=-1, keepdim=True)
    before = ordered.cumsum(dim=-1) - ordered
    min_p = torch.tensor([o.min_p for o in options], device=device).unsqueeze(1)
    keeps = ((before < top_p * total) | (top_p >= 1)) & (ordered >= min_p * ordered[:, :1])
    keeps[:, 0] = True
    return torch.zeros_like(probabilities).scatter_(1, order, torch.where(keeps, ordered, 0.0))


def _told(logits: Tensor, token: int, n_top: int | None) -> Sampled:
    if n_top is None:
        return Sampled(token)
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = logprobs.topk(n_top) if n_top else (logprobs[:0], logprobs[:0])
    top = tuple(zip(map(int, ids.tolist()), values.tolist(), strict=True))
    return Sampled(token, float(logprobs[token]), top)
