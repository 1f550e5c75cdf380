"""The wire between processes: order, back-pressure, ends of connections, copies of large data."""

import asyncio
import gc
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import uvloop

from mlserve.processes.frames import MAX_MESSAGES, Decoder, encode, pack, unpack
from mlserve.processes.wire import Link, Message, connect

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
WAIT_S = 10

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on either event loop."""

    def run(scenario: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(asyncio.wait_for(scenario, WAIT_S))

    return run


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


class End:
    """A link and what it has told."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.reads: list[int] = []
        """How many messages there were at a time."""
        self.received_when_lost: list[int] = []
        self.lost = asyncio.Event()
        self.writable = asyncio.Event()
        self.congested_when_writable: list[bool] = []
        self.link = Link(self._take, self._note_lost, self._note_writable)
        self._arrived = asyncio.Event()

    async def until(self, n_messages: int) -> list[Message]:
        while len(self.messages) < n_messages:
            self._arrived.clear()
            await self._arrived.wait()
        return self.messages

    def _take(self, messages: list[Message]) -> None:
        self.messages += messages
        self.reads.append(len(messages))
        self._arrived.set()

    def _note_writable(self) -> None:
        self.congested_when_writable.append(self.link.is_congested)
        self.writable.set()

    def _note_lost(self) -> None:
        self.received_when_lost.append(len(self.messages))
        self.lost.set()


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[End, End]]:
    """Two links to each other on this event loop."""
    ends = End(), End()
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        await connect(sock, end.link)
    try:
        yield ends
    finally:
        for end in ends:
            end.link.close()
        for end in ends:
            await end.lost.wait()


@asynccontextmanager
async def half_linked() -> AsyncIterator[tuple[End, socket.socket]]:
    """A link to a bare socket, which blocks."""
    end = End()
    ours, theirs = socket.socketpair()
    await connect(ours, end.link)
    try:
        yield end, theirs
    finally:
        theirs.close()
        end.link.close()
        await end.lost.wait()


def read_all(sock: socket.socket, n_messages: int) -> list[Message]:
    """Read so many messages."""
    decoder = Decoder()
    messages: list[Message] = []
    while len(messages) < n_messages:
        n_bytes = sock.recv_into(decoder.buffer())
        assert n_bytes, "The connection has ended."
        decoder.advance(n_bytes)
        messages += decoder.take()
    return messages


def fill(link: Link) -> int:
    """Send until it is congested; gives how many messages that took."""
    for number in range(1000):
        if link.is_congested:
            return number
        link.send((1, number, bytes(50_000)))
        link.flush()
    pytest.fail("The link was never congested.")


def test_messages_of_a_turn_arrive_together_and_in_order(run: Run) -> None:
    async def scenario() -> tuple[list[Message], list[int]]:
        async with linked() as (left, right):
            for number in range(20):
                left.link.send((1, number))
            return await right.until(20), right.reads

    messages, reads = run(scenario())

    assert messages == [(1, number) for number in range(20)]
    assert reads == [20]


def test_both_ends_talk_at_the_same_time(run: Run) -> None:
    async def scenario() -> tuple[list[Any], list[Any]]:
        async with linked() as (left, right):
            for number in range(300):
                left.link.send((1, pack(np.full(2_000, number))))
                right.link.send((1, pack(np.full(20_000, -number))))
            received = await right.until(300), await left.until(300)
            there, back = ([unpack(message[1])[-1] for message in end] for end in received)
            return there, back

    there, back = run(scenario())

    assert there == list(range(300))
    assert back == [-number for number in range(300)]


def test_more_messages_than_a_frame_holds_all_arrive(run: Run) -> None:
    n_messages = 3 * MAX_MESSAGES + 1

    async def scenario() -> list[Message]:
        async with linked() as (left, right):
            for number in range(n_messages):
                left.link.send((1, number))
            return await right.until(n_messages)

    assert run(scenario()) == [(1, number) for number in range(n_messages)]


def test_what_is_sent_before_it_is_connected_is_kept(run: Run, pair: Pair) -> None:
    async def scenario() -> None:
        end = End()
        end.link.send((1, "early"))
        await connect(pair[0], end.link)
        assert await asyncio.to_thread(read_all, pair[1], 1) == [(1, "early")]
        end.link.close()
        await end.lost.wait()

    run(scenario())


def test_a_message_that_cannot_be_pickled_is_lost_alone(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> list[Message]:
        async with linked() as (left, right):
            for message in [(1, "a"), (2, lambda: None), (3, "b")]:
                left.link.send(message)
            return await right.until(2)

    assert run(scenario()) == [(1, "a"), (3, "b")]
    (record,) = [record for record in caplog.records if record.message == "link.send.failed"]
    assert record.__dict__["kind"] == 2


def test_an_exception_of_the_receiver_is_logged_and_changes_nothing(
    run: Run, caplog: pytest.LogCaptureFixture, pair: Pair
) -> None:
    async def scenario() -> list[Message]:
        received: list[Message] = []
        lost, arrived = asyncio.Event(), asyncio.Event()

        def take(messages: list[Message]) -> None:
            received.extend(messages)
            arrived.set()
            if len(received) == 1:
                raise LookupError("The first one is refused.")

        link = Link(take, lost.set)
        await connect(pair[0], link)
        for number in range(2):
            arrived.clear()
            pair[1].sendall(b"".join(encode([(1, number)])))
            await arrived.wait()
        link.close()
        await lost.wait()
        return received

    with caplog.at_level(logging.ERROR):
        assert run(scenario()) == [(1, 0), (1, 1)]
    assert [record.message for record in caplog.records] == ["link.callback.failed"]


def test_what_was_sent_is_delivered_before_the_loss_is_told_once(run: Run) -> None:
    async def scenario() -> list[int]:
        async with half_linked() as (end, sock):
            sock.sendall(b"".join([*encode([(1, "a"), (1, "b")]), *encode([(1, "c")])]))
            sock.close()
            await end.lost.wait()
        return end.received_when_lost

    assert run(scenario()) == [3]


def test_what_was_sent_is_delivered_even_if_a_write_fails_first(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> list[int]:
        async with half_linked() as (end, sock):
            sock.sendall(b"".join(encode([(1, "a")]) + encode([(1, pack(bytes(70_000)))])))
            sock.close()
            # The event loop cannot have noticed either yet.
            for number in range(10):
                end.link.send((1, number))
                end.link.flush()
            await end.lost.wait()
        return end.received_when_lost

    assert run(scenario()) == [2]
    assert not caplog.messages


@pytest.mark.parametrize("size", [10, 200_000, 2_000_000])
def test_half_a_frame_is_no_message(run: Run, size: int) -> None:
    frame = b"".join(encode([(1, pack(np.ones(size, "u1")))]))

    async def scenario() -> list[int]:
        async with half_linked() as (end, sock):
            await asyncio.to_thread(sock.sendall, frame + frame[:-1])
            sock.close()
            await end.lost.wait()
        return end.received_when_lost

    assert run(scenario()) == [1]


@pytest.mark.parametrize("size", [16, 300_000])
def test_what_is_no_frame_ends_the_connection(
    run: Run, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    async def scenario() -> tuple[list[Message], list[int]]:
        async with half_linked() as (end, sock):
            sock.sendall(b"".join(encode([(1, "before")])) + bytes(16))
            await end.lost.wait()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                sock.sendall(bytes(size))
        return end.messages, end.received_when_lost

    assert run(scenario()) == ([(1, "before")], [1])
    assert "link.receive.failed" in caplog.messages


class Unreadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_an_unreadable_rest_of_a_dead_process_ends_the_connection_as_well(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> list[int]:
        async with half_linked() as (end, sock):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sock.settimeout(WAIT_S)
            # One read after the other takes this.
            for message in [(1, "before"), (1, "x" * 300_000, Unreadable()), (1, "after")]:
                sock.sendall(b"".join(encode([message])))
            sock.close()
            for number in range(10):
                end.link.send((1, number))
                end.link.flush()
            await end.lost.wait()
        return end.received_when_lost

    assert run(scenario()) == [1]
    assert caplog.messages.count("link.receive.failed") == 1


def test_an_end_that_does_not_read_holds_the_sender_back(run: Run) -> None:
    async def scenario() -> None:
        async with half_linked() as (end, sock):
            n_sent = fill(end.link)
            # What the system takes in, and what may wait here.
            assert 50_000 * n_sent < 8_000_000
            assert "congested" in repr(end.link)
            assert not end.writable.is_set()

            messages = await asyncio.to_thread(read_all, sock, n_sent)

            await end.writable.wait()
            assert not end.link.is_congested
            assert [message[1] for message in messages] == list(range(n_sent))

    run(scenario())


def test_what_is_sent_all_the_same_is_kept_and_arrives(run: Run) -> None:
    """More than the link holds back at once: it becomes writable once, at the end."""
    n_more = 3 * MAX_MESSAGES

    async def scenario() -> tuple[list[Any], list[bool]]:
        async with half_linked() as (end, sock):
            n_sent = fill(end.link)
            for number in range(n_more):
                end.link.send((1, n_sent + number, bytes(20_000)))
            messages = await asyncio.to_thread(read_all, sock, n_sent + n_more)
            await end.writable.wait()
            return [message[1] for message in messages], end.congested_when_writable

    numbers, congested_when_writable = run(scenario())

    assert len(numbers) > n_more
    assert numbers == list(range(len(numbers)))
    assert congested_when_writable == [False]


def test_a_reader_that_dies_ends_a_congested_link(run: Run) -> None:
    async def scenario() -> list[int]:
        async with half_linked() as (end, sock):
            fill(end.link)
            sock.close()
            await end.lost.wait()
            assert not end.link.is_congested
            end.link.send((1, "nobody reads this"))
            end.link.flush()
        return end.received_when_lost

    assert run(scenario()) == [0]


def test_draining_sends_everything_before_it_closes(run: Run) -> None:
    array = np.arange(2_000_000)

    async def scenario() -> Any:
        async with half_linked() as (end, sock):
            end.link.send((1, "first"))
            end.link.send((2, pack(array)))
            end.link.send((3, "last"))
            reading = asyncio.to_thread(read_all, sock, 3)
            messages, _ = await asyncio.gather(reading, end.link.drain_and_close(WAIT_S))
            assert end.received_when_lost == [0]
            assert not end.congested_when_writable
            end.link.send((4, "too late"))
            assert sock.recv(1) == b""
            return messages

    first, second, last = run(scenario())

    assert (first, last) == ((1, "first"), (3, "last"))
    assert np.array_equal(unpack(second[1]), array)


def test_draining_gives_up_after_its_time(run: Run) -> None:
    async def scenario() -> list[int]:
        async with half_linked() as (end, _):
            fill(end.link)
            await end.link.drain_and_close(0.01)
        return end.received_when_lost

    assert run(scenario()) == [0]


def test_draining_still_takes_messages(run: Run) -> None:
    async def answer_while_it_drains(end: End, sock: socket.socket, n_sent: int) -> None:
        sock.sendall(b"".join(encode([(1, "meanwhile")])))
        assert await end.until(1) == [(1, "meanwhile")]
        await asyncio.to_thread(read_all, sock, n_sent)

    async def scenario() -> None:
        async with half_linked() as (end, sock):
            answering = answer_while_it_drains(end, sock, fill(end.link))
            await asyncio.gather(end.link.drain_and_close(WAIT_S), answering)

    run(scenario())


def test_a_link_that_was_never_connected_drains_at_once(run: Run) -> None:
    run(End().link.drain_and_close(WAIT_S))


def test_closing_is_told_once(run: Run) -> None:
    async def scenario() -> list[list[int]]:
        async with linked() as (left, right):
            left.link.close()
            left.link.close()
            await asyncio.gather(left.lost.wait(), right.lost.wait())
        return [left.received_when_lost, right.received_when_lost]

    assert run(scenario()) == [[0], [0]]


def test_a_large_array_is_copied_once_by_both_ends_together(run: Run) -> None:
    """The only memory is where the receiver's array stands; afterwards nothing is kept."""
    size = 100_000_000
    array = np.ones(size, "u1")

    async def scenario() -> tuple[int, int]:
        async with linked() as (left, right):
            # What the first messages allocate is not counted.
            left.link.send((1, pack(array[:100_000])))
            await right.until(1)
            right.messages.clear()
            tracemalloc.start()
            try:
                left.link.send((1, pack(array)))
                await right.until(1)
                received = unpack(right.messages.pop()[1])
                _, peak_bytes = tracemalloc.get_traced_memory()
                assert received[-1] == 1
                assert received.flags.writeable
                del received
                gc.collect()
                rest_bytes, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            return peak_bytes, rest_bytes

    peak_bytes, rest_bytes = run(scenario())

    assert size < peak_bytes < 1.05 * size
    assert rest_bytes < 0.05 * size


def test_long_bytes_are_copied_once_on_each_side(run: Run) -> None:
    size = 20_000_000
    value = bytes(size)

    async def scenario() -> int:
        async with linked() as (left, right):
            tracemalloc.start()
            try:
                packed = pack([value])
                tracemalloc.reset_peak()
                left.link.send((1, packed))
                (message,) = await right.until(1)
                assert unpack(message[1]) == [value]
                _, peak_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            return peak_bytes

    # The sender's pickle, the pickle that was received, the receiver's value.
    assert run(scenario()) < 3.1 * size
