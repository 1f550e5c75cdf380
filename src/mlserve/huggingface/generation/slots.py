"""
The memory of a decoder: one row per sequence, made once, from position 0 on.

A sequence enters by writing into a free row and leaves by being swapped out of the rows that are
computed, so that nothing is copied as long as it runs.
"""

import inspect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from mlserve.huggingface.generation.packing import (
    NO_MASK,
    Kept,
    Part,
    is_packing,
    parts_of,
    start_packing,
    stop_packing,
)
from mlserve.observability.loggers import get_logger

__all__ = ["SlotMemory", "bytes_per_token", "groups_alike", "has_plain_attention"]

logger = get_logger(__name__)

_MOST_PADDING = {"cpu": 32, "cuda": 256}  # tokens in all: beyond that another pass costs less


class _Plan:
    """Which rows and places the layers write to and read from in the forward pass that runs."""

    first: int
    n_rows: int
    length: int
    rows: Tensor
    places: Tensor
    parts: Sequence[Part] = ()
    """What reads from where, if all new tokens stand in one row; else all rows are alike."""


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, shape (slots, heads, places, dim)."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, plan: _Plan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it has no types
        self.keys, self.values = keys, values
        self.is_initialized = True
        self._plan = plan

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """It has its memory already."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Write what is new and give what is there, shape (rows, heads, length, dim)."""
        plan = self._plan
        if plan.parts:
            self.keys[plan.rows, :, plan.places] = key_states[0].transpose(0, 1)
            self.values[plan.rows, :, plan.places] = value_states[0].transpose(0, 1)
            kept = Kept(self.keys, self.values, plan.parts)
            return kept, kept
        rows = slice(plan.first, plan.first + plan.n_rows)
        keys, values = self.keys[rows], self.values[rows]
        keys[plan.rows, :, plan.places] = key_states.transpose(1, 2)
        values[plan.rows, :, plan.places] = value_states.transpose(1, 2)
        return keys[:, :, : plan.length], values[:, :, : plan.length]

    def get_seq_length(self) -> int:
        """Masks and positions are given: nobody derives them from this."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As above."""
        return self._plan.length, 0

    def get_max_length(self) -> int:
        """How many places a row has."""
        return int(self.keys.shape[2])


class SlotMemory:
    """
    A decoder with rows for several sequences. In the replica's thread.

    Args:
        model: A causal language model whose layers all have plain attention.
        n_rows: How many sequences fit.
        max_length: How many tokens a sequence has at most.

    Raises:
        RuntimeError: If there is not enough memory.
    """

    can_share_prefixes = True

    def __init__(self, model: Any, n_rows: int, max_length: int) -> None:
        self.n_rows = n_rows
        self.max_length = max_length
        self._model = model
        self._device = model.device
        self._plan = _Plan()
        # Its one public name is write-only.
        self._is_additive = model.config._attn_implementation == "eager"  # noqa: SLF001
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        # One more place, to which what pads a row is written.
        self._layers = [
            _SlotLayer(self._rows_like(layer.keys), self._rows_like(layer.values), self._plan)
            for layer in _probed(model)
        ]
        self._cache = Cache(layers=list(self._layers))
        was_packing = is_packing(model)  # for another memory
        self.packs = self._can_pack()
        """Whether rows of different lengths are computed at once, and nothing is padded."""
        if not (self.packs or was_packing):
            stop_packing(model)

    def _rows_like(self, part: Tensor) -> Tensor:
        return part.new_zeros(self.n_rows, part.shape[1], self.max_length + 1, part.shape[3])

    def _can_pack(self) -> bool:
        """Try it: models are free to do with keys and values what they like."""
        pieces = [[1, 2, 1, 0, 2, 2, 0, 1], [2, 0, 1]][: self.n_rows]
        pieces = [piece[: max(1, self.max_length - 1)] for piece in pieces]
        starts = [0] * len(pieces)
        following, lengths = [[1]] * len(pieces), [len(piece) for piece in pieces]
        try:
            if not start_packing(self._model):
                return False
            packed = [self._packed(pieces, starts), self._packed(following, lengths)]
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:
            logger.warning("generation.packing.impossible", exc_info=True)
            return False
        padded = [self._padded(0, pieces, starts), self._padded(0, following, lengths)]
        allowed = 1e-3 if self._model.dtype == torch.float32 else 5e-2
        return all(
            bool((one - other).norm() <= allowed * other.norm())
            for one, other in zip(packed, padded, strict=True)
        )

    def run(self, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """
        Compute the next logits of the first rows.

        Args:
            pieces: The new tokens of each row, at least one.
            starts: How many tokens each row holds already.

        Returns:
            float32, shape (rows, vocabulary): after the last token of each piece.
        """
        if self.packs:
            return self._packed(pieces, starts)
        logits, first = [], 0
        most_padding = _MOST_PADDING.get(self._device.type, _MOST_PADDING["cuda"])
        for n in groups_alike([len(piece) for piece in pieces], most_padding):
            group = slice(first, first + n)
            logits.append(self._padded(first, pieces[group], starts[group]))
            first += n
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _packed(self, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Compute them in one pass, all new tokens in one row."""
        device, plan = self._device, self._plan
        sizes = [len(piece) for piece in pieces]
        rows = [row for row, size in enumerate(sizes) for _ in range(size)]
        places = [
            place
            for start, size in zip(starts, sizes, strict=True)
            for place in range(start, start + size)
        ]
        ids = torch.tensor([[token for piece in pieces for token in piece]], device=device)
        plan.rows, plan.places = (
            torch.tensor(rows, device=device),
            torch.tensor(places, device=device),
        )
        plan.parts = parts_of(sizes, starts, plan.places)
        options: dict[str, Any] = {}
        ends = torch.tensor(list(accumulate(sizes)), device=device) - 1
        if self._keeps_logits:
            options["logits_to_keep"] = ends
        try:
            logits: Tensor = self._forward(ids, NO_MASK, plan.places.unsqueeze(0), options)[0]
        finally:
            plan.parts = ()
        return (logits if self._keeps_logits else logits[ends]).float()

    def _padded(self, first: int, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Compute neighbouring rows, all padded to the longest piece."""
        device, n_rows = self._device, len(pieces)
        sizes = [len(piece) for piece in pieces]
        width = max(sizes)
        padded = [[*piece, *[0] * (width - len(piece))] for piece in pieces]
        ids = torch.tensor(padded, device=device)
        begins = torch.tensor(starts, device=device).unsqueeze(1)
        places = begins + torch.arange(width, device=device)
        plan = self._plan
        plan.first, plan.n_rows = first, n_rows
        plan.length = max(start + size for start, size in zip(starts, sizes, strict=True))
        plan.rows = torch.arange(n_rows, device=device).unsqueeze(1)
        plan.places = places
        if min(sizes) < width:
            is_real = torch.arange(width, device=device) < torch.tensor(
                sizes, device=device
            ).unsqueeze(1)
            plan.places = torch.where(is_real, places, self.max_length)
            places = torch.where(is_real, places, 0)
        kept = torch.arange(plan.length, device=device)
        mask = (kept <= places.unsqueeze(2)).unsqueeze(1)
        if self._is_additive:
            lowest = torch.finfo(self._model.dtype).min
            mask = torch.zeros(mask.shape, dtype=self._model.dtype, device=device).masked_fill_(
                ~mask, lowest
            )
        return self._logits(ids, mask, places, sizes)

    def _logits(self, ids: Tensor, mask: Tensor, places: Tensor, sizes: list[int]) -> Tensor:
        wanted = sorted({size - 1 for size in sizes})
        options: dict[str, Any] = {}
        if self._keeps_logits:  # all are of the last place wherever no row is padded
            options["logits_to_keep"] = (
                1 if len(wanted) == 1 else torch.tensor(wanted, device=self._device)
            )
        logits = self._forward(ids, mask, places, options)
        if len(wanted) == 1:
            alike: Tensor = logits[:, -1].float()
            return alike
        at = [wanted.index(size - 1) if self._keeps_logits else size - 1 for size in sizes]
        rows = torch.arange(len(sizes), device=self._device)
        last: Tensor = logits[rows, torch.tensor(at, device=self._device)].float()
        return last

    def _forward(
        self, ids: Tensor, mask: Tensor, places: Tensor, options: Mapping[str, Any]
    ) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=self._cache,
                use_cache=True,
                **options,
            ).logits
        return logits

    @torch.inference_mode()
    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange what two rows hold in their first places."""
        for layer in self._layers:
            for memory in (layer.keys, layer.values):
                kept = memory[one, :, :length].clone()
                memory[one, :, :length] = memory[other, :, :length]
                memory[other, :, :length] = kept

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Give a row what another one holds in its first places."""
        for layer in self._layers:
            for memory in (layer.keys, layer.values):
                memory[target, :, :length] = memory[source, :, :length]

    def __repr__(self) -> str:
        return f"<SlotMemory of {self.n_rows} rows, {self.max_length} tokens each>"


def _probed(model: Any) -> list[Any]:
    """Run one token through the model, and give what its layers keep."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        ids = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return list(cache.layers)


def has_plain_attention(model: Any) -> bool:
    """Say whether every layer sees all tokens before: no window, no recurrent state."""
    try:
        layers = _probed(model)
    except Exception:  # noqa: BLE001 - an encoder-decoder or its like, which needs more
        return False
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def bytes_per_token(model: Any) -> int:
    """Say how much memory one token of one sequence takes."""
    return sum(
        part.shape[1] * part.shape[3] * part.element_size()
        for layer in _probed(model)
        for part in (layer.keys, layer.values)
    )


def groups_alike(sizes: Sequence[int], most_padding: int) -> list[int]:
    """
    Divide neighbours into groups of similar sizes, since what pads the shorter ones is computed.

    Args:
        sizes: Of each.
        most_padding: How much a group may be padded by in all, before a call of its own costs less.

    Returns:
        How many are in each group.
    """
    groups: list[int] = []
    longest = total = 0
    for size in sizes:
        longest, total = max(longest, size), total + size
        if groups and longest * (groups[-1] + 1) - total <= most_padding:
            groups[-1] += 1
        else:
            groups.append(1)
            longest = total = size
    return groups
