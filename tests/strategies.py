"""What several property tests draw from."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from mlserve.batching.queue import BatchLimits

__all__ = ["NOW", "Waiting", "arrivals", "batch_limits", "json_values"]

NOW = 1000.0
"""The monotonic seconds at which the drawn requests are looked at."""


@dataclass(eq=False, slots=True, kw_only=True)
class Waiting:
    """A request as the queue sees it; two are equal only if they are the same."""

    priority: int = 0
    tenant: str | None = None
    key: Hashable = None
    cost: int = 1
    deadline: float = math.inf
    abandoned: bool = False
    enqueued_at: float = 0.0

    def is_dead(self, now: float = NOW) -> bool:
        return self.abandoned or self.deadline <= now


@st.composite
def arrivals(
    draw: st.DrawFn, *, max_size: int = 14, tenants: Sequence[str | None] = (None,)
) -> list[Waiting]:
    """Draw requests in the order in which they arrived, dead ones among them."""
    requests = draw(
        st.lists(
            st.builds(
                Waiting,
                priority=st.integers(0, 3),
                tenant=st.sampled_from(tenants),
                key=st.sampled_from([None, "a", "b"]),
                cost=st.integers(0, 12),
                deadline=st.sampled_from([NOW - 1, NOW, NOW + 1, math.inf]),
                abandoned=st.sampled_from([False, False, False, True]),
            ),
            max_size=max_size,
        )
    )
    for number, request in enumerate(requests):
        request.enqueued_at = NOW - len(requests) + number
    return requests


def batch_limits(*, padded: bool | None = None) -> st.SearchStrategy[BatchLimits]:
    """Draw what a batch may hold; a padded one always has a bound on its cost."""
    unpadded = st.builds(
        BatchLimits,
        max_size=st.integers(1, 9),
        max_cost=st.none() | st.integers(1, 40),
    )
    with_padding = st.builds(
        BatchLimits,
        max_size=st.integers(1, 9),
        max_cost=st.integers(1, 40),
        padded=st.just(True),
    )
    if padded is None:
        return unpadded | with_padding
    return with_padding if padded else unpadded


def json_values(*, max_leaves: int = 12) -> st.SearchStrategy[Any]:
    """Draw what JSON can carry: no NaN, no infinity, keys are texts."""
    text = st.text(st.characters(exclude_categories=["Cs"]))
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | text
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner) | st.dictionaries(text, inner),
        max_leaves=max_leaves,
    )
