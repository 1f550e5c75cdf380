"""The channel between a generator's thread and the event loop, and the reader of its chunks."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_time import run_with_clock

from mlserve.errors import DeadlineExceededError, ModelError
from mlserve.handler import Call
from mlserve.job import Job
from mlserve.settings import Limits
from mlserve.streaming import Channel, ChannelClosed, ChannelSink, ModelStream
from mlserve.testing import FakeClock

PATIENCE_S = 10.0
ResultT = TypeVar("ResultT")


@asynccontextmanager
async def in_thread(body: Callable[[], None]) -> AsyncIterator[None]:
    """Run `body` in a thread beside the loop; it must end within the test's patience."""
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    yield
    await asyncio.to_thread(thread.join, PATIENCE_S)
    assert not thread.is_alive()


def run(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    async def bounded() -> ResultT:
        async with asyncio.timeout(PATIENCE_S):
            return await main

    return asyncio.run(bounded())


async def read_all(channel: Channel[Any]) -> list[Any]:
    items = []
    while True:
        try:
            items.append(await channel.get())
        except ChannelClosed:
            return items


@given(st.lists(st.integers(), max_size=40), st.integers(1, 5))
@settings(max_examples=25)
def test_what_a_thread_puts_is_read_in_order_and_nothing_is_lost(
    items: list[int], capacity: int
) -> None:
    async def scenario() -> list[int]:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity)

        def produce() -> None:
            assert [channel.put(item) for item in items] == [True] * len(items)
            channel.end()

        async with in_thread(produce):
            return await read_all(channel)

    assert run(scenario()) == items


def test_a_full_channel_blocks_its_producer_until_something_is_read() -> None:
    async def scenario() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=2)
        is_full, has_put = threading.Event(), threading.Event()

        def produce() -> None:
            channel.put(1)
            channel.put(2)
            is_full.set()
            channel.put(3)
            has_put.set()

        async with in_thread(produce):
            assert await asyncio.to_thread(is_full.wait, PATIENCE_S)
            assert not await asyncio.to_thread(has_put.wait, 0.01)
            assert repr(channel) == "<Channel 2 of 2, open>"
            assert await channel.get() == 1
            assert await asyncio.to_thread(has_put.wait, PATIENCE_S)
            assert [await channel.get(), await channel.get()] == [2, 3]

    run(scenario())


def test_a_blocked_producer_goes_on_once_half_of_what_waits_was_read() -> None:
    async def scenario() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=8)
        is_full, has_put = threading.Event(), threading.Event()

        def produce() -> None:
            for item in range(8):
                channel.put(item)
            is_full.set()
            channel.put(8)
            has_put.set()

        async with in_thread(produce):
            assert await asyncio.to_thread(is_full.wait, PATIENCE_S)
            assert [await channel.get() for _ in range(3)] == [0, 1, 2]
            assert not await asyncio.to_thread(has_put.wait, 0.01)
            assert await channel.get() == 3
            assert await asyncio.to_thread(has_put.wait, PATIENCE_S)
            assert [await channel.get() for _ in range(5)] == [4, 5, 6, 7, 8]

    run(scenario())


def test_all_that_waits_is_taken_at_once_and_its_producer_goes_on() -> None:
    async def scenario() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=2)
        taken: list[None] = []
        channel.on_taken = lambda: taken.append(None)
        assert list(channel.take()) == []

        is_full, has_put = threading.Event(), threading.Event()

        def produce() -> None:
            channel.put(1)
            channel.put(2)
            is_full.set()
            channel.put(3)
            has_put.set()

        async with in_thread(produce):
            assert await asyncio.to_thread(is_full.wait, PATIENCE_S)
            assert list(channel.take()) == [1, 2]
            assert await asyncio.to_thread(has_put.wait, PATIENCE_S)

        assert list(channel.take()) == [3]
        assert len(taken) == 3

    run(scenario())


def test_whoever_stops_taking_has_taken_what_he_was_given_and_nothing_else() -> None:
    async def scenario() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        taken: list[None] = []
        channel.on_taken = lambda: taken.append(None)
        for item in range(3):
            channel.put(item)

        for item in channel.take():
            assert item == 0
            break

        assert len(taken) == 1
        assert list(channel.take()) == [1, 2]
        assert len(taken) == 3

    run(scenario())


def test_closing_wakes_a_blocked_producer_and_tells_it_to_stop() -> None:
    async def scenario() -> list[bool]:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=1)
        is_full, answers = threading.Event(), []

        def produce() -> None:
            answers.append(channel.put(1))
            is_full.set()
            answers.append(channel.put(2))
            answers.append(channel.put(3))

        async with in_thread(produce):
            assert await asyncio.to_thread(is_full.wait, PATIENCE_S)
            channel.close()
            channel.close()
        assert channel.is_closed
        assert repr(channel) == "<Channel 0 of 1, closed>"
        return answers

    assert run(scenario()) == [True, False, False]


def test_a_reader_that_waits_is_woken_by_an_item_and_by_the_end() -> None:
    async def scenario() -> list[int]:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        is_waiting, may_end = threading.Event(), threading.Event()

        def produce() -> None:
            assert is_waiting.wait(PATIENCE_S)
            channel.put(1)
            assert may_end.wait(PATIENCE_S)
            channel.end()

        async with in_thread(produce):
            first = asyncio.ensure_future(channel.get())
            await asyncio.sleep(0)
            is_waiting.set()
            items = [await first]
            rest = asyncio.ensure_future(read_all(channel))
            await asyncio.sleep(0)
            may_end.set()
            return items + await rest

    assert run(scenario()) == [1]


def test_items_are_read_before_the_error_that_followed_them() -> None:
    async def scenario() -> list[int]:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        channel.put(1)
        channel.put(2)
        channel.end(ModelError())
        items = [await channel.get(), await channel.get()]
        for _ in range(2):
            with pytest.raises(ModelError):
                await channel.get()
        return items

    assert run(scenario()) == [1, 2]


def test_only_the_first_end_counts() -> None:
    async def scenario() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        channel.end()
        channel.end(ModelError())
        assert repr(channel) == "<Channel 0 of 32, ended>"
        with pytest.raises(ChannelClosed):
            await channel.get()

    run(scenario())


def test_a_reader_that_comes_after_the_end_does_not_wait() -> None:
    async def scenario() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        async with in_thread(channel.end):
            pass
        with pytest.raises(ChannelClosed):
            await channel.get()

    run(scenario())


def test_an_end_between_the_look_and_the_wait_is_not_missed() -> None:
    class EndsLate(Channel[int]):
        """The producer ends when the reader has looked and is about to wait."""

        async def _wait(self, *args: Any) -> Any:
            self.end()
            return await super()._wait(*args)

    async def scenario() -> None:
        with pytest.raises(ChannelClosed):
            await EndsLate(asyncio.get_running_loop()).get()

    run(scenario())


def test_a_reader_gives_up_after_its_timeout_and_loses_nothing() -> None:
    clock = FakeClock(5.0)

    async def scenario() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        with pytest.raises(TimeoutError):
            await channel.get(timeout_s=2.0)
        assert clock() == 7.0
        channel.put(1)
        assert await channel.get(timeout_s=2.0) == 1
        assert clock() == 7.0

    run_with_clock(clock, scenario())


def test_an_item_that_comes_in_time_is_read_before_the_timeout() -> None:
    clock = FakeClock()

    async def scenario() -> int:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        asyncio.get_running_loop().call_later(1.0, channel.put, 1)
        return await channel.get(timeout_s=2.0)

    assert run_with_clock(clock, scenario()) == 1
    assert clock() == 1.0


def test_a_reader_that_is_cancelled_leaves_the_channel_usable() -> None:
    async def scenario() -> int:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        reader = asyncio.ensure_future(channel.get())
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        channel.put(1)
        return await channel.get()

    assert run(scenario()) == 1


def test_a_wake_up_that_comes_late_is_no_timeout() -> None:
    async def scenario() -> list[str]:
        loop = asyncio.get_running_loop()
        channel: Channel[str] = Channel(loop)

        async def read_three() -> list[str]:
            return [await channel.get() for _ in range(3)]

        reader = asyncio.ensure_future(read_three())
        await asyncio.sleep(0)
        # The second item comes when the reader has been woken for the first one but has not run:
        # it reads both, waits again, and is then woken once more with nothing there.
        channel.put("first")
        loop.call_soon(channel.put, "second")
        for _ in range(3):
            await asyncio.sleep(0)
        assert not reader.done()
        channel.put("third")
        return await reader

    assert run(scenario()) == ["first", "second", "third"]


def test_a_late_wake_up_does_not_make_the_timeout_longer() -> None:
    clock = FakeClock()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        channel: Channel[str] = Channel(loop)

        async def read() -> None:
            assert await channel.get() == "first"
            assert await channel.get() == "second"
            with pytest.raises(TimeoutError):
                await channel.get(timeout_s=3.0)

        reader = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        channel.put("first")
        loop.call_soon(channel.put, "second")
        await reader

    run_with_clock(clock, scenario())

    assert clock() == 3.0


def test_a_producer_on_the_loop_waits_for_space_without_blocking_it() -> None:
    async def scenario() -> list[int]:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=1)

        async def produce() -> None:
            for item in range(5):
                assert await channel.aput(item)
            channel.end()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce())
            return await read_all(channel)

    assert run(scenario()) == [0, 1, 2, 3, 4]


def test_closing_wakes_a_producer_on_the_loop() -> None:
    async def scenario() -> bool:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=1)
        await channel.aput(1)
        blocked = asyncio.ensure_future(channel.aput(2))
        await asyncio.sleep(0)
        assert not blocked.done()
        channel.close()
        return await blocked

    assert run(scenario()) is False


def test_a_producer_that_outlives_the_loop_is_told_to_stop() -> None:
    async def begin() -> tuple[Channel[int], asyncio.Future[int]]:
        channel: Channel[int] = Channel(asyncio.get_running_loop())
        reader = asyncio.ensure_future(channel.get())
        await asyncio.sleep(0)
        return channel, reader

    loop = asyncio.new_event_loop()
    channel, reader = loop.run_until_complete(begin())
    loop.close()

    channel.put(1)

    assert channel.is_closed
    assert channel.put(2) is False
    reader._log_destroy_pending = False  # type: ignore[attr-defined]  # it can never end
    del reader


def test_the_sink_of_a_stream_ends_its_channel() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        channels: list[Channel[int]] = [Channel(loop), Channel(loop)]
        ChannelSink(channels[0]).result(None)
        ChannelSink(channels[1]).fail(ModelError())
        with pytest.raises(ChannelClosed):
            await channels[0].get()
        with pytest.raises(ModelError):
            await channels[1].get()

    run(scenario())


class Rig:
    """A stream whose chunks the test provides; made on a running loop."""

    def __init__(self, clock: FakeClock, limits: Limits | None = None) -> None:
        self.channel: Channel[str] = Channel(asyncio.get_running_loop())
        self.job = Job("text", Call("r-1", clock=clock), timeout_s=60.0)
        self.job.stage = "stream"
        self.closed: list[Job] = []
        self.stream = ModelStream(
            self.job, self.channel, limits or Limits(), clock, self.closed.append
        )


def test_a_stream_gives_its_chunks_and_then_closes() -> None:
    clock = FakeClock()

    async def scenario() -> None:
        rig = Rig(clock)
        for word in ("a", "b"):
            rig.channel.put(word)
        rig.channel.end()
        assert [chunk async for chunk in rig.stream] == ["a", "b"]
        assert rig.job.times.chunks == 2
        assert rig.closed == [rig.job]
        assert rig.channel.is_closed

    run_with_clock(clock, scenario())


def test_what_is_ready_is_given_without_waiting_and_counts_as_read() -> None:
    clock = FakeClock()

    async def scenario() -> None:
        rig = Rig(clock, Limits(idle_s=5.0))
        assert list(rig.stream.ready()) == []
        for word in ("a", "b", "c"):
            rig.channel.put(word)
        assert await rig.stream.next() == "a"
        clock.advance(4.0)
        assert list(rig.stream.ready()) == ["b", "c"]
        assert rig.job.times.chunks == 3
        clock.advance(4.0)  # the pause began with what was ready
        rig.channel.put("d")
        assert await rig.stream.next() == "d"
        rig.channel.end(ModelError())
        assert list(rig.stream.ready()) == []
        with pytest.raises(ModelError):
            await rig.stream.next()

    run_with_clock(clock, scenario())


def test_to_look_for_what_is_ready_makes_no_pause_shorter() -> None:
    clock = FakeClock()

    async def scenario() -> None:
        rig = Rig(clock, Limits(idle_s=5.0))
        rig.channel.put("a")
        assert await rig.stream.next() == "a"
        clock.advance(4.0)
        assert list(rig.stream.ready()) == []
        clock.advance(2.0)
        with pytest.raises(DeadlineExceededError):
            await rig.stream.next()

    run_with_clock(clock, scenario())


def test_leaving_a_stream_tells_its_generator_to_stop_once() -> None:
    clock = FakeClock()

    async def scenario() -> None:
        rig = Rig(clock)
        rig.channel.put("a")
        async with rig.stream as stream:
            assert await stream.next() == "a"
        await rig.stream.aclose()
        assert rig.job.abandoned
        assert rig.channel.is_closed
        assert rig.closed == [rig.job]

    run_with_clock(clock, scenario())


def test_an_error_comes_after_the_chunks_and_closes_the_stream() -> None:
    clock = FakeClock()

    async def scenario() -> None:
        rig = Rig(clock)
        rig.channel.put("a")
        rig.channel.end(ModelError())
        assert await rig.stream.next() == "a"
        with pytest.raises(ModelError):
            await rig.stream.next()
        assert rig.closed == [rig.job]

    run_with_clock(clock, scenario())


@pytest.mark.parametrize("limits", [Limits(), Limits(first_chunk_s=50.0)])
def test_a_reader_may_look_away_and_the_stream_goes_on(limits: Limits) -> None:
    clock = FakeClock()

    async def scenario() -> None:
        rig = Rig(clock, limits)
        with pytest.raises(TimeoutError):
            await rig.stream.next(timeout_s=15.0)
        assert clock() == 15.0
        assert rig.closed == []
        rig.channel.put("a")
        assert await rig.stream.next(timeout_s=15.0) == "a"

    run_with_clock(clock, scenario())


def test_a_first_chunk_that_does_not_come_in_time_ends_the_stream() -> None:
    clock = FakeClock()

    async def scenario() -> None:
        rig = Rig(clock, Limits(first_chunk_s=20.0, idle_s=1.0))
        with pytest.raises(TimeoutError):
            await rig.stream.next(timeout_s=15.0)
        with pytest.raises(DeadlineExceededError, match=r"within 20 s \(stage: stream\)"):
            await rig.stream.next(timeout_s=15.0)
        assert clock() == 20.0
        assert rig.closed == [rig.job]

    run_with_clock(clock, scenario())


def test_a_further_chunk_that_does_not_come_in_time_ends_the_stream() -> None:
    clock = FakeClock()

    async def scenario() -> None:
        rig = Rig(clock, Limits(idle_s=3.0))
        asyncio.get_running_loop().call_later(10.0, rig.channel.put, "a")
        assert await rig.stream.next() == "a"
        with pytest.raises(DeadlineExceededError):
            await rig.stream.next()
        assert math.isclose(clock(), 13.0)

    run_with_clock(clock, scenario())
