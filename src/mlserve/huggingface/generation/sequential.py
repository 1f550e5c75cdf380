"""The memory of models that rows cannot hold: each sequence has a cache of its own kind."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

__all__ = ["SequentialMemory"]


class SequentialMemory:
    """
    A decoder that computes one sequence after the other. In the replica's thread.

    For sliding windows, recurrent layers and mixtures of them. If a step has failed amid a sequence
    whose layers cannot forget, that sequence fails.

    Args:
        model: A causal language model.
        n_rows: How many sequences may run at once.
        max_length: How many tokens a sequence has at most.
    """

    can_share_prefixes = False

    def __init__(self, model: Any, n_rows: int, max_length: int) -> None:
        self.n_rows = n_rows
        self.max_length = max_length
        self._model = model
        self._caches: list[Any] = [None] * n_rows

    def run(self, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Compute the next logits of the first rows; arguments and result as in `SlotMemory`."""
        rows = enumerate(zip(pieces, starts, strict=True))
        return torch.cat([self._run_one(row, piece, start) for row, (piece, start) in rows])

    def _run_one(self, row: int, piece: Sequence[int], start: int) -> Tensor:
        if start == 0:
            self._caches[row] = DynamicCache(config=self._model.config)
        cache = self._caches[row]
        if (length := cache.get_seq_length()) != start:
            cache.crop(start - length)
        device = self._model.device
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor([list(piece)], device=device),
                position_ids=torch.arange(start, start + len(piece), device=device).unsqueeze(0),
                past_key_values=cache,
                use_cache=True,
            ).logits
        last: Tensor = logits[:, -1].float()
        return last

    @torch.inference_mode()
    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange what two rows hold."""
        caches = self._caches
        caches[one], caches[other] = caches[other], caches[one]

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Give a row what another one holds."""
        self._caches[target] = copy.deepcopy(self._caches[source])

    def __repr__(self) -> str:
        return f"<SequentialMemory of {self.n_rows} rows>"
