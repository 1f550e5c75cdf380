"""Laws of the learned cap on batches."""

from hypothesis import given
from hypothesis import strategies as st

from mlserve.batching.memory_cap import MemoryCap

steps = st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=300)


@given(st.integers(1, 4096), steps)
def test_the_cap_stays_between_one_and_the_ceiling(
    ceiling: int, steps: list[tuple[bool, int]]
) -> None:
    cap = MemoryCap(ceiling)

    for has_failed, size in steps:
        before = cap.limit
        cap.lower(size) if has_failed else cap.note_fit(size)

        assert 1 <= cap.limit <= ceiling
        assert cap.limit <= before if has_failed else cap.limit >= before


@given(st.integers(2, 4096), st.integers(2, 4096))
def test_what_did_not_fit_is_not_tried_again_at_once(ceiling: int, failed: int) -> None:
    cap = MemoryCap(ceiling)

    cap.lower(failed)

    assert cap.limit < failed


def test_the_cap_is_raised_slowly_once_full_batches_fit() -> None:
    cap = MemoryCap(32)
    cap.lower(16)

    limits = []
    for _ in range(64 * 3):
        cap.note_fit(cap.limit)
        limits.append(cap.limit)

    assert [limits[62], limits[63], limits[127], limits[191]] == [8, 9, 10, 11]


def test_batches_far_below_the_cap_raise_nothing() -> None:
    cap = MemoryCap(32)
    cap.lower(16)

    for _ in range(1000):
        cap.note_fit(3)

    assert cap.limit == 8


def test_the_cap_comes_back_to_the_ceiling_in_the_end() -> None:
    cap = MemoryCap(32)
    cap.lower(2)

    for _ in range(64 * 40):
        cap.note_fit(cap.limit)

    assert cap.limit == 32
    assert repr(cap) == "<MemoryCap 32 of 32>"
