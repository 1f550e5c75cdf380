"""Frames: what is encoded is decoded, however it is cut, and what is no frame is refused."""

import math
import pickle
import struct
import tracemalloc
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.processes import frames
from mlserve.processes.frames import (
    Buffer,
    Decoder,
    Message,
    Packed,
    WireError,
    encode,
    pack,
    unpack,
)

HEADER_BYTES = 16
LARGE = 70_000
"""More bytes than a frame's pickle takes in."""


def joined(parts: Iterable[Buffer]) -> bytes:
    return b"".join(parts)


def feed(decoder: Decoder, data: bytes) -> list[Message]:
    """Give a decoder one read after the other, each as large as it can take."""
    messages: list[Message] = []
    while data:
        buffer = decoder.buffer()
        n_bytes = min(len(buffer), len(data))
        buffer[:n_bytes] = data[:n_bytes]
        decoder.advance(n_bytes)
        messages += decoder.take()
        data = data[n_bytes:]
    return messages


def unpacked(messages: list[Message]) -> list[Any]:
    return [unpack(message[-1]) for message in messages]


def is_same(left: Any, right: Any) -> bool:
    """Compare values that may hold arrays."""
    if isinstance(left, np.ndarray):
        orders = [(array.flags.c_contiguous, array.flags.f_contiguous) for array in (left, right)]
        alike = (left.dtype, left.shape, orders[0]) == (right.dtype, right.shape, orders[1])
        return alike and left.tobytes() == right.tobytes()
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and is_same([*left.values()], [*right.values()])
    return repr(left) == repr(right)  # not a number is the same as itself


def array_of(dtype: str, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray[Any, Any]:
    return np.arange(math.prod(shape)).astype(dtype).reshape(shape).copy(order)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
arrays = st.builds(
    array_of,
    st.sampled_from(["u1", "<i2", ">i4", "<f4", "<f8", "c16", "?", "S3", "U2", "M8[ns]"]),
    st.sampled_from([(1,), (0,), (2, 0), (2, 3), (5, 4, 3), (LARGE,), (300, 250)]),
    st.sampled_from(["C", "F"]),
)
values = st.recursive(
    plain | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=4,
)


@given(value=values)
def test_what_is_packed_is_unpacked(value: Any) -> None:
    (message,) = feed(Decoder(), joined(encode([(1, 7, pack(value))])))

    assert message[:2] == (1, 7)
    assert is_same(unpack(message[2]), value)


@given(groups=st.lists(st.lists(values, max_size=4), max_size=4), data=st.data())
def test_no_cut_loses_changes_or_reorders_a_message(
    groups: list[list[Any]], data: st.DataObject
) -> None:
    sent = joined(
        part for group in groups for part in encode([(1, pack(value)) for value in group])
    )
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=6)))
    decoder = Decoder()

    received: list[Message] = []
    for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        received += feed(decoder, sent[begin:end])

    assert is_same(unpacked(received), [value for group in groups for value in group])


def test_small_frames_may_be_cut_at_every_byte() -> None:
    sent = joined([*encode([(1, "a"), (2, pack([3.5]))]), *encode([(3, None)])])

    for cut in range(len(sent) + 1):
        decoder = Decoder()
        first, second, third = feed(decoder, sent[:cut]) + feed(decoder, sent[cut:])

        assert (first, second[0], unpack(second[1]), third) == ((1, "a"), 2, [3.5], (3, None))


def test_a_large_frame_may_be_cut_at_every_edge() -> None:
    value = [np.arange(LARGE, dtype="u1"), b"x" * LARGE, np.ones(LARGE)]
    parts = encode([(1, pack(value)), (2, pack("y" * LARGE))])
    sent = joined(parts)
    edges = {sum(len(part) for part in parts[:number]) for number in range(len(parts) + 1)}
    near = {edge + offset for edge in edges | {HEADER_BYTES, 48} for offset in range(-3, 4)}

    for cut in sorted(near & set(range(len(sent)))):
        decoder = Decoder()
        received = feed(decoder, sent[:cut]) + feed(decoder, sent[cut:])

        assert is_same(unpacked(received), [value, "y" * LARGE])


def test_frames_are_read_byte_by_byte() -> None:
    decoder = Decoder()
    sent = joined([*encode([(1, "a")]), *encode([(2, pack({"b": 3}))])])

    received = [message for byte in sent for message in feed(decoder, bytes([byte]))]

    assert received[0] == (1, "a")
    assert unpack(received[1][1]) == {"b": 3}


def test_frames_of_one_read_are_all_given() -> None:
    sent = joined(part for number in range(1000) for part in encode([(1, number)]))

    assert feed(Decoder(), sent) == [(1, number) for number in range(1000)]


def test_large_data_stays_out_of_the_pickle() -> None:
    array = np.arange(LARGE, dtype="u1")
    packed = pack([array, bytes(LARGE)])
    assert isinstance(packed, Packed)

    head, *buffers = [np.frombuffer(part, "u1") for part in encode([(1, packed)])]

    assert len(head) < 1000
    for memory in (array, np.frombuffer(packed._data, "u1")):
        assert any(np.shares_memory(buffer, memory) for buffer in buffers)


def test_a_large_pickle_is_not_copied_behind_its_header() -> None:
    messages = [(1, "x" * LARGE)]

    head, data = encode(messages)

    assert (len(head), data) == (HEADER_BYTES, pickle.dumps(messages, protocol=5))


@pytest.mark.parametrize("size", [10, LARGE, 5 * LARGE])
def test_arrays_are_as_writable_as_they_were(size: int) -> None:
    writable, fixed = np.zeros(size), np.zeros(size)
    fixed.flags.writeable = False

    (message,) = feed(Decoder(), joined(encode([(1, pack([writable, fixed]))])))
    received = unpack(message[1])

    assert [array.flags.writeable for array in received] == [True, False]
    received[0] += 1
    assert not writable.any()


@pytest.mark.parametrize("size", [10, 1000])
def test_arrays_that_are_not_contiguous_arrive(size: int) -> None:
    whole = np.arange(size * size, dtype="f8").reshape(size, size)
    value = [whole[::2, ::3], whole.T, whole[:, 1]]

    (message,) = feed(Decoder(), joined(encode([(1, pack(value))])))

    assert all(map(np.array_equal, unpack(message[1]), value))


def test_more_buffers_than_a_frame_can_hold_go_into_the_pickle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frames, "_MAX_BUFFERS_PACKED", 2)
    value = [np.full(LARGE, number, "u1") for number in range(5)]

    parts = encode([(1, pack(value))])

    # The head, the pickle of the value, which is long now, and two arrays.
    assert len(parts) == 1 + 1 + 2
    assert is_same(unpacked(feed(Decoder(), joined(parts))), [value])


def test_a_value_may_be_sent_twice() -> None:
    packed = pack([np.arange(LARGE), "x"])

    received = feed(Decoder(), joined([*encode([(1, packed)]), *encode([(2, packed)])]))

    first, second = unpacked(received)
    assert is_same(first, second)
    assert not np.shares_memory(first[0], second[0])


class Unreadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_a_value_that_cannot_be_pickled_raises_when_it_is_packed() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pack([lambda: None])


def test_a_value_that_cannot_be_unpickled_fails_alone() -> None:
    messages = [(1, pack("a")), (2, pack(Unreadable())), (3, pack("b"))]

    first, second, third = feed(Decoder(), joined(encode(messages)))

    assert (unpack(first[1]), unpack(third[1])) == ("a", "b")
    with pytest.raises(ValueError, match="no number"):
        unpack(second[1])


@given(position=st.integers(0, HEADER_BYTES + 8 - 1), flipped=st.integers(1, 255))
def test_a_header_with_a_wrong_byte_is_refused(position: int, flipped: int) -> None:
    decoder = Decoder()
    good = joined(encode([(1, "before")]))
    wrong = bytearray(joined(encode([(2, pack(np.zeros(LARGE, "u1")))])))
    wrong[position] ^= flipped
    received = good + wrong[:1000] + bytes(8 * frames._MAX_BUFFERS)

    with pytest.raises(WireError):
        feed(decoder, received)

    assert decoder.take() in ([], [(1, "before")])


def test_what_came_before_a_corrupt_frame_in_one_read_can_be_taken() -> None:
    decoder = Decoder()

    with pytest.raises(WireError, match="does not begin like a frame"):
        feed(decoder, joined(encode([(1, "before")])) + b"GET / HTTP/1.1\r\n")

    assert decoder.take() == [(1, "before")]


def test_a_corrupt_header_allocates_nothing_of_what_it_promises() -> None:
    promised = struct.pack("<IIII", frames._MAGIC, 12345, 0, 0xFFFF_FFFF)
    decoder = Decoder()

    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="checksum"):
            feed(decoder, promised)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 1_000_000


def test_messages_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(WireError, match="cannot be read"):
        feed(Decoder(), joined(encode([(1, Unreadable())])))


def test_a_decoder_keeps_nothing_of_what_was_taken() -> None:
    decoder = Decoder()
    sent = joined(encode([(1, pack(np.ones(5_000_000, "u1")))]))

    tracemalloc.start()
    try:
        received = feed(decoder, sent)
        with_it, _ = tracemalloc.get_traced_memory()
        received.clear()
        without_it, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert with_it > 5_000_000
    assert without_it < 100_000
