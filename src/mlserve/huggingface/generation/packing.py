"""
Attention over sequences of different lengths in one forward pass, without padding.

All new tokens stand in one row, so that every layer but attention computes them at once; attention
is computed for each sequence by itself, over what its row of the memory holds. As continuous
batching has it: Orca (Yu et al. 2022, OSDI '22), section 3.2, "selective batching".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["NO_MASK", "Kept", "Part", "is_packing", "parts_of", "start_packing", "stop_packing"]

_NAME, _PLAIN = "mlserve_packed", "sdpa"
NO_MASK = torch.empty(1, 1, 1, 1)
"""What is given to a model as its mask, so that it makes none."""


class Part(NamedTuple):
    """Neighbouring rows with as many new tokens each."""

    first: int
    """The first row."""
    n_rows: int
    at: int
    """The first of their tokens."""
    n_tokens: int
    """Of each row."""
    length: int
    """How many places are read."""
    mask: Tensor | None
    """What each token sees, bool, shape (rows, 1, tokens, places); `None` = what stands before."""


class Kept(NamedTuple):
    """What a layer keeps, in the place of the keys and values that a model hands to attention."""

    keys: Tensor
    """Shape (rows, heads, places, dim); so are the values."""
    values: Tensor
    parts: Sequence[Part]
    """What reads from where, in the order of the new tokens."""

    def attend(self, module: Any, query: Tensor, **options: Any) -> Tensor:
        """
        Let each token see its own sequence.

        Args:
            module: The layer.
            query: Shape (1, heads, tokens, dim).
            options: What the model says besides.

        Returns:
            Shape (1, tokens, heads, dim).
        """
        found = []
        for first, n_rows, at, n_tokens, length, mask in self.parts:
            mine = query[0, :, at : at + n_rows * n_tokens]
            mine = mine.view(-1, n_rows, n_tokens, query.shape[-1]).transpose(0, 1)
            keys = self.keys[first : first + n_rows, :, :length]
            values = self.values[first : first + n_rows, :, :length]
            seen, _ = sdpa_attention_forward(module, mine, keys, values, mask, **options)
            found.append(seen.flatten(0, 1))
        return torch.cat(found).unsqueeze(0)


def parts_of(sizes: Sequence[int], starts: Sequence[int], places: Tensor) -> list[Part]:
    """
    Say what reads from where: those with one new token together, every other one by itself.

    Args:
        sizes: How many new tokens each row has.
        starts: How many it holds already.
        places: Where each new token goes in its row, shape (tokens,).
    """
    parts: list[Part] = []
    row = at = 0
    while row < len(sizes):
        n_rows, n_tokens = 1, sizes[row]
        while n_tokens == 1 and row + n_rows < len(sizes) and sizes[row + n_rows] == 1:
            n_rows += 1
        stop = at + n_rows * n_tokens
        length = max(starts[row : row + n_rows]) + n_tokens
        mask = None
        if length > n_tokens:
            seen = torch.arange(length, device=places.device)
            mask = (seen <= places[at:stop].unsqueeze(1)).view(n_rows, 1, n_tokens, length)
        parts.append(Part(row, n_rows, at, n_tokens, length, mask))
        row, at = row + n_rows, stop
    return parts


def is_packing(model: Any) -> bool:
    """Say whether a model asks what it was given for attention."""
    return bool(_implementation(model.config) == _NAME)


def start_packing(model: Any) -> bool:
    """Have a model ask what it was given for attention, and say whether it does."""
    config = model.config
    parts = [getattr(config, name, None) for name in config.sub_configs]
    if not is_packing(model):
        if {_implementation(part) for part in (config, *parts) if part is not None} != {_PLAIN}:
            return False
        AttentionInterface.register(_NAME, _attend)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)
    return is_packing(model)


def stop_packing(model: Any) -> None:
    """Have a model compute attention as it did before."""
    if is_packing(model):
        model.set_attn_implementation(_PLAIN)


def _implementation(config: Any) -> Any:
    return config._attn_implementation  # noqa: SLF001 - its public name is write-only


def _attend(
    module: Any, query: Tensor, key: Any, value: Any, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention, whoever runs the model."""
    if isinstance(key, Kept):
        return key.attend(module, query, **options), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
