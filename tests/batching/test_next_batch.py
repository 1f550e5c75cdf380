"""What is laid out goes to one taker, and only as long as all in it may run."""

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlserve.batching.next_batch import LaidOut, NextBatch
from mlserve.batching.queue import BatchLimits, Plan, RequestQueue
from mlserve.batching.report import BatchReport
from mlserve.handler import Call
from mlserve.job import Job
from mlserve.testing import FakeClock


def plan_of(*timeouts_s: float) -> Plan[Job]:
    clock = FakeClock()
    jobs = [Job(s, Call("r", timeout_s=s, clock=clock), timeout_s=s) for s in timeouts_s]
    return Plan(jobs, is_full=True, dead=[])


def at(now: float) -> FakeClock:
    return FakeClock(now)


def nobody(report: BatchReport) -> None:
    raise AssertionError("Nothing is run here.")


def test_what_was_taken_up_is_known_to_the_event_loop_once_it_looks() -> None:
    next_batch, plan = NextBatch(), plan_of(5.0)
    next_batch.lay_out(plan, nobody)
    assert next_batch.look() is None

    taken = next_batch.take_up(at(1.0))

    assert taken is not None
    assert (taken.plan, taken.begun_at) == (plan, 1.0)
    assert next_batch.take_up(at(1.0)) is None
    assert next_batch.laid_out is taken  # for all that the event loop knows
    assert next_batch.look() is taken
    assert next_batch.laid_out is None
    assert next_batch.look() is None


def test_what_was_withdrawn_is_not_taken_up() -> None:
    next_batch = NextBatch()
    next_batch.lay_out(plan_of(5.0), nobody)

    next_batch.withdraw()

    assert next_batch.laid_out is None
    assert next_batch.take_up(at(1.0)) is None
    assert next_batch.look() is None


@pytest.mark.parametrize("now", [2.0, 2.5])
def test_nobody_takes_up_what_has_expired_in_part(now: float) -> None:
    next_batch = NextBatch()
    next_batch.lay_out(plan_of(5.0, 2.0), nobody)

    assert next_batch.take_up(at(now)) is None
    assert next_batch.look() is None


def test_nobody_takes_up_what_a_client_has_left() -> None:
    next_batch, plan = NextBatch(), plan_of(5.0, 5.0)
    next_batch.lay_out(plan, nobody)

    plan.batch[1].call.cancel()

    assert next_batch.take_up(at(1.0)) is None


def test_it_says_whether_there_is_one() -> None:
    next_batch = NextBatch()
    assert repr(next_batch) == "<NextBatch empty>"

    next_batch.lay_out(plan_of(5.0), nobody)

    assert repr(next_batch) == "<NextBatch laid out>"


@pytest.mark.usefixtures("switching")
def test_of_threads_and_the_event_loop_exactly_one_gets_each() -> None:
    next_batch, n = NextBatch(), 3_000
    is_over = threading.Event()
    taken: list[LaidOut] = []
    withdrawn: list[Plan[Job]] = []
    seen: list[LaidOut] = []

    def take() -> None:
        while not is_over.is_set():
            if laid_out := next_batch.take_up(at(0.0)):
                taken.append(laid_out)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(n):
        plan = plan_of(5.0)
        next_batch.lay_out(plan, nobody)
        while (laid_out := next_batch.look()) is None:
            next_batch.withdraw()
            if next_batch.laid_out is None:
                withdrawn.append(plan)
                break
        else:
            seen.append(laid_out)
    is_over.set()
    for thread in threads:
        thread.join(10)

    assert sorted(map(id, taken)) == sorted(map(id, seen))
    assert len(seen) + len(withdrawn) == n


class Threads(RuleBasedStateMachine):
    """A queue with what is laid out of it: nothing runs twice, nothing dead is begun."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.queue: RequestQueue[Job] = RequestQueue(100)
        self.next_batch = NextBatch()
        self.begun: list[Job] = []
        self.ended: set[Job] = set()

    @rule(timeout_s=st.sampled_from([1.0, 5.0]))
    def arrive(self, timeout_s: float) -> None:
        if self.queue.reserve():
            call = Call("r", timeout_s=timeout_s, clock=self.clock)
            job = Job("x", call, timeout_s=timeout_s)
            job.enqueued_at = self.clock()
            self.queue.put(job)

    @rule(size=st.integers(1, 3))
    def lay_out(self, size: int) -> None:
        self.settle()
        if self.next_batch.laid_out is None and len(self.queue) >= size:
            plan = self.queue.plan(BatchLimits(max_size=size), self.clock())
            if not plan.dead:
                self.next_batch.lay_out(plan, nobody)

    @rule()
    def take_up(self) -> None:
        if taken := self.next_batch.take_up(self.clock):
            assert all(not job.abandoned for job in taken.plan.batch)
            assert all(job.deadline > self.clock() for job in taken.plan.batch)
            self.begun += taken.plan.batch

    @precondition(lambda self: len(self.queue) > 0)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiting = self.queue.plan(BatchLimits(max_size=100), -1.0).batch
        job = data.draw(st.sampled_from(waiting))
        job.call.cancel()
        self.next_batch.withdraw()
        self.settle()
        is_there = self.queue.discard(job)
        assert is_there != (job in self.begun)
        self.ended.add(job)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def go_on(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def settle(self) -> None:
        if taken := self.next_batch.look():
            self.queue.remove(taken.plan)

    @invariant()
    def nothing_runs_twice(self) -> None:
        assert len(self.begun) == len(set(self.begun))


TestThreads = Threads.TestCase
