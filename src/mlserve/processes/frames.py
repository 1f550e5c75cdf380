"""
Frames: many messages in one pickle, with large data beside it; pure.

Both ends are processes of one server that share a private `socket.socketpair()`, so pickle is
safe here, and only here: what a client sends is validated first and never unpickled.

A frame is a fixed header, the size of each buffer, one pickle of a list of messages, and the
buffers: the memory of arrays and long pickles (PEP 574), which is neither copied into the pickle
nor out of it, but received where it stays.
"""

import pickle
import struct
import zlib
from collections.abc import Generator
from typing import Any, cast

__all__ = [
    "MAX_MESSAGES",
    "Buffer",
    "Decoder",
    "Message",
    "Packed",
    "Parcel",
    "WireError",
    "encode",
    "pack",
    "unpack",
]

Message = tuple[Any, ...]
"""A plain tuple: its kind, a small int, and what belongs to it; a user's objects are packed."""

Buffer = bytes | bytearray | memoryview

MAX_MESSAGES = 128
"""How many messages one frame may hold."""

_LARGE_BYTES = 65_536
_GATHERED_BYTES = 4 * _LARGE_BYTES
_MAX_BUFFERS_PACKED = 1 << 13
_MAX_BUFFERS = MAX_MESSAGES * _MAX_BUFFERS_PACKED

_MAGIC = 0x4D4C5731
# The magic number and a checksum of what follows; how many buffers there are and how many bytes
# the pickle has. The sizes of the buffers come next.
_PAIR = struct.Struct("<II")
_HEAD = struct.Struct("<IIII")
_SIZE_BYTES = 8
_NOTHING = memoryview(b"")


_Wanted = tuple[int, bool]
"""How many bytes come next, and whether a frame begins with them."""


class WireError(ConnectionError):
    """What was received is no frame; the connection cannot be used any longer."""


class Packed:
    """
    A value in its own pickle with large parts beside it; made by `pack`.

    It may be sent several times. What it holds of the value's memory must not change until then.
    """

    __slots__ = ("_buffers", "_data")

    def __init__(self, data: Buffer, buffers: tuple[Buffer, ...]) -> None:
        self._data = data
        self._buffers = buffers

    def unpack(self) -> Any:
        """Give the value, as `unpack` does."""
        return pickle.loads(self._data, buffers=self._buffers)  # noqa: S301 - from ourselves

    def __reduce__(self) -> tuple[Any, ...]:
        data = self._data
        if len(data) > _LARGE_BYTES:
            return Packed, (pickle.PickleBuffer(data), self._out_of_band())
        return Packed, (data, self._out_of_band())

    def _out_of_band(self) -> tuple[pickle.PickleBuffer, ...]:
        return tuple(pickle.PickleBuffer(buffer) for buffer in self._buffers)


Parcel = bytes | Packed
"""A value in its own pickle, so that it can fail alone: mostly nothing but that."""


def unpack(parcel: Parcel) -> Any:
    """
    Give a value; arrays stand in the memory that was received, so call it once.

    Raises:
        Exception: What pickle, or a class of the value, raised.
    """
    if isinstance(parcel, bytes):
        return pickle.loads(parcel)  # noqa: S301 - from ourselves
    return parcel.unpack()


def pack(value: Any) -> Parcel:
    """
    Pickle a value, without copying its large arrays; pure.

    Raises:
        Exception: What pickle, or a class of the value, raised.
    """
    buffers: list[Buffer] = []

    def is_kept(buffer: pickle.PickleBuffer) -> bool:
        """Whether the pickle itself takes the buffer in."""
        raw = buffer.raw()
        if raw.nbytes <= _LARGE_BYTES or len(buffers) == _MAX_BUFFERS_PACKED:
            return True
        buffers.append(raw)
        return False

    data = pickle.dumps(value, protocol=5, buffer_callback=is_kept)
    if not buffers and len(data) <= _LARGE_BYTES:
        return data
    return Packed(data, tuple(buffers))


def encode(messages: list[Message]) -> list[Buffer]:
    """
    Make the parts of one frame, to be written one after the other; pure.

    Args:
        messages: At most `MAX_MESSAGES`.

    Raises:
        Exception: What pickle raised for an item that is not packed.
    """
    buffers: list[pickle.PickleBuffer] = []
    # `append` gives None: no buffer is taken into the pickle.
    data = pickle.dumps(messages, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    counts = _PAIR.pack(len(raw), len(data))
    if not raw and len(data) <= _LARGE_BYTES:  # as nearly always
        return [_PAIR.pack(_MAGIC, zlib.crc32(counts)) + counts + data]
    counts += struct.pack(f"<{len(raw)}Q", *[part.nbytes for part in raw])
    head = _PAIR.pack(_MAGIC, zlib.crc32(counts)) + counts
    if len(data) > _LARGE_BYTES:
        return [head, data, *raw]
    return [head + data, *raw]


class Decoder:
    """
    Makes messages of what a socket gives, however that is cut; pure.

    Small parts gather in one memory that is used again and again; a large one is received
    straight into the memory that it stays in.
    """

    def __init__(self) -> None:
        self._gathered = memoryview(bytearray(_GATHERED_BYTES))
        self._begin = 0
        self._end = 0
        self._part: bytearray | None = None
        self._missing = _NOTHING
        self._messages: list[Message] = []
        self._frames = _read_frames(self._messages)
        self._wanted_bytes, self._is_between = next(self._frames)

    def buffer(self) -> memoryview:
        """Give the memory that the socket is to fill next; never empty."""
        return self._gathered[self._end :] if self._part is None else self._missing

    def advance(self, n_bytes: int) -> None:
        """
        Take in what was received.

        Args:
            n_bytes: How much of `buffer()` was filled.

        Raises:
            WireError: If this is no frame; what came before it can still be taken.
        """
        if self._part is None:
            self._end += n_bytes
            if self._is_between and self._take_whole():
                return
        else:
            self._missing = self._missing[n_bytes:]
            if self._missing:
                return
            part, self._part, self._missing = self._part, None, _NOTHING
            self._wanted_bytes, self._is_between = self._frames.send(part)
        self._parse()

    def take(self) -> list[Message]:
        """Give the messages that are complete and were not given yet, in the order sent."""
        messages = self._messages[:]
        self._messages.clear()
        return messages

    def _take_whole(self) -> bool:
        """Read what was gathered if it is one small frame, as nearly always; say whether it is."""
        if self._end < _HEAD.size:
            return False
        magic, checksum, n_buffers, data_bytes = _HEAD.unpack_from(self._gathered)
        if n_buffers or self._end != _HEAD.size + data_bytes or magic != _MAGIC:
            return False
        if zlib.crc32(self._gathered[_PAIR.size : _HEAD.size]) != checksum:
            return False
        end, self._end = self._end, 0
        self._messages += _unpickled(self._gathered[_HEAD.size : end], [])
        return True

    def _parse(self) -> None:
        """Hand over the parts that were gathered, and make room for the next one."""
        while (n_bytes := self._end - self._begin) >= self._wanted_bytes:
            begin, self._begin = self._begin, self._begin + self._wanted_bytes
            found = self._gathered[begin : self._begin]
            self._wanted_bytes, self._is_between = self._frames.send(found)
        rest = self._gathered[self._begin : self._end]
        if self._wanted_bytes > _LARGE_BYTES:
            self._part = bytearray(self._wanted_bytes)
            self._part[:n_bytes] = rest
            self._missing = memoryview(self._part)[n_bytes:]
            n_bytes = 0
        elif self._begin:
            self._gathered[:n_bytes] = rest
        self._begin, self._end = 0, n_bytes


# Not a method: a generator that holds its decoder would leave both, and what was received, to the
# garbage collector, which seldom comes.
def _read_frames(into: list[Message]) -> Generator[_Wanted, Buffer, None]:
    """Ask for the bytes of the next part; it is valid until the one after is asked for."""
    while True:
        into += yield from _read_frame()


def _read_frame() -> Generator[_Wanted, Buffer, list[Message]]:
    header = yield _HEAD.size, True
    magic, checksum = _PAIR.unpack_from(header)
    n_buffers, data_bytes = _PAIR.unpack_from(header, _PAIR.size)
    if magic != _MAGIC or n_buffers > _MAX_BUFFERS:
        raise WireError("What was received does not begin like a frame.")
    computed = zlib.crc32(header[_PAIR.size :])
    sizes: tuple[int, ...] = ()
    if n_buffers:
        table = yield n_buffers * _SIZE_BYTES, False
        computed = zlib.crc32(table, computed)
        sizes = struct.unpack(f"<{n_buffers}Q", table)
    if computed != checksum:
        raise WireError("The header of a frame does not match its checksum.")
    data = yield data_bytes, False
    if n_buffers and isinstance(data, memoryview):
        data = bytes(data)
    buffers: list[Buffer] = []
    for size in sizes:
        part = yield size, False
        buffers.append(part if isinstance(part, bytearray) else bytearray(part))
    return _unpickled(data, buffers)


def _unpickled(data: Buffer, buffers: list[Buffer]) -> list[Message]:
    try:
        return cast("list[Message]", pickle.loads(data, buffers=buffers))  # noqa: S301 - our own
    except Exception as exc:
        raise WireError("The messages of a frame cannot be read.") from exc
