"""The batcher between a fake pool and a queue; time is the loop's, and stands still."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.fake_time import run_with_clock

from mlserve.batching.batcher import Batcher
from mlserve.batching.next_batch import NextBatch
from mlserve.batching.queue import BatchLimits, Plan, RequestQueue
from mlserve.batching.report import BatchReport
from mlserve.errors import DeadlineExceededError
from mlserve.handler import Call
from mlserve.job import Job
from mlserve.observability.metrics import batch_metrics
from mlserve.settings import Batching
from mlserve.testing import FakeClock


class FakeReplica:
    """Keeps the batches that it is given until the test ends them."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._done: Callable[[BatchReport], None] | None = None

    @property
    def is_busy(self) -> bool:
        return self._done is not None

    def run(self, batch: list[Job], done: Callable[[BatchReport], None]) -> None:
        assert not self.is_busy
        self.batches.append([job.payload for job in batch])
        self._done = done

    def finish(self, infer_s: float = 0.01) -> None:
        done, self._done = self._done, None
        assert done is not None
        done(BatchReport(infer_s=infer_s))


class FakePool:
    """A pool of fake replicas."""

    goes_on = True

    def __init__(self, n_replicas: int = 1) -> None:
        self.replicas = [FakeReplica() for _ in range(n_replicas)]
        self.next_batch = NextBatch()
        self.ended: list[Callable[[BatchReport], None]] = []

    def idle(self) -> FakeReplica | None:
        return next((replica for replica in self.replicas if not replica.is_busy), None)

    @property
    def is_working(self) -> bool:
        return any(replica.is_busy for replica in self.replicas)

    @property
    def batches(self) -> list[list[str]]:
        return [batch for replica in self.replicas for batch in replica.batches]

    def take_up(self, number: int, now: float) -> list[str]:
        """Have a replica's thread end its batch, and give what it goes on with."""
        replica = self.replicas[number]
        taken = self.next_batch.take_up(lambda: now)
        ended = replica._done
        assert ended is not None
        replica._done = None
        if taken is not None:
            replica.run(taken.plan.batch, taken.done)
        self.ended.append(ended)
        return [] if taken is None else replica.batches[-1]

    def tell(self) -> None:
        """Have the event loop hear of the batches that have ended."""
        while self.ended:
            self.ended.pop(0)(BatchReport(infer_s=0.01))


class Answers:
    """Keeps what a job was answered with."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def result(self, value: object) -> None:
        raise AssertionError("The batcher answers with errors only.")

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)


class Rig:
    """A batcher with everything around it under the test's control."""

    def __init__(
        self, batching: Batching | None = None, *, clock: FakeClock, n_replicas: int = 1
    ) -> None:
        self.clock = clock
        self.pool = FakePool(n_replicas)
        self.queue: RequestQueue[Job] = RequestQueue(capacity=1000)
        self.batcher = Batcher(
            batching or Batching(), self.pool, self.queue, self.clock, batch_metrics("test", "v1")
        )

    def submit(
        self, *names: str, timeout_s: float = 60.0, priority: int = 5, tenant: str | None = None
    ) -> list[Job]:
        jobs = []
        for name in names:
            call = Call(name, timeout_s=timeout_s, clock=self.clock)
            job = Job(name, call, timeout_s=timeout_s, priority=priority, tenant=tenant)
            job.sink = Answers()
            assert self.queue.reserve()
            self.batcher.submit(job)
            jobs.append(job)
        return jobs


def run(
    scenario: Callable[[Rig], Awaitable[None]],
    batching: Batching | None = None,
    *,
    n_replicas: int = 1,
) -> Rig:
    """Play a scenario on a loop whose time only goes on where the scenario waits for it."""
    clock = FakeClock(100.0)
    rig = Rig(batching, clock=clock, n_replicas=n_replicas)

    async def main() -> None:
        await scenario(rig)
        rig.batcher.close()

    run_with_clock(clock, main())
    return rig


async def one_iteration() -> None:
    """Let the event loop run what is ready."""
    await asyncio.sleep(0)


def errors_of(job: Job) -> list[BaseException]:
    assert isinstance(job.sink, Answers)
    return job.sink.errors


def test_a_lone_request_is_sent_at_once() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a")
        await one_iteration()

    rig = run(scenario)

    assert rig.pool.batches == [["a"]]
    assert rig.clock() == 100.0


def test_what_arrives_in_the_same_loop_iteration_is_one_batch() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a", "b")
        rig.submit("c")
        await one_iteration()

    rig = run(scenario)

    assert rig.pool.batches == [["a", "b", "c"]]


def test_requests_gather_while_the_replica_is_busy() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a")
        await one_iteration()
        rig.submit("b")
        await one_iteration()
        rig.submit("c")
        await one_iteration()
        rig.pool.replicas[0].finish()

    rig = run(scenario)

    assert rig.pool.batches == [["a"], ["b", "c"]]


def test_a_finished_batch_starts_the_next_without_asking_the_loop() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a", "b", "c")
        await one_iteration()
        rig.pool.replicas[0].finish()
        assert rig.pool.batches == [["a", "b"], ["c"]]

    run(scenario, Batching(max_size=2))


def test_free_replicas_share_the_queue() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a", "b", "c", "d", "e")
        await one_iteration()

    rig = run(scenario, Batching(max_size=2), n_replicas=2)

    assert rig.pool.batches == [["a", "b"], ["c", "d"]]
    assert len(rig.queue) == 1


def test_jobs_are_told_where_they_are_and_in_what_company() -> None:
    async def scenario(rig: Rig) -> None:
        jobs = rig.submit("a", "b")
        assert {job.stage for job in jobs} == {"queue"}
        rig.clock.advance(0.5)
        await one_iteration()
        assert {job.stage for job in jobs} == {"infer"}
        assert {job.times.queue_s for job in jobs} == {0.5}
        assert {job.times.batch_size for job in jobs} == {2}

    run(scenario)


def test_expired_and_abandoned_requests_are_answered_and_never_run() -> None:
    async def scenario(rig: Rig) -> None:
        (expired,) = rig.submit("expired", timeout_s=1.0)
        (abandoned,) = rig.submit("abandoned")
        rig.submit("alive")
        rig.clock.advance(1.0)
        abandoned.call.cancel()
        await one_iteration()
        for job in (expired, abandoned):
            (error,) = errors_of(job)
            assert isinstance(error, DeadlineExceededError)
            assert error.stage == "queue"
            assert job.abandoned

    rig = run(scenario)

    assert rig.pool.batches == [["alive"]]


def test_a_queue_of_dead_requests_keeps_the_replica_free() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a", "b", timeout_s=1.0)
        rig.clock.advance(2.0)
        await one_iteration()
        assert rig.pool.idle() is not None

    rig = run(scenario, Batching(max_wait_s=1.0))

    assert rig.pool.batches == []
    assert len(rig.queue) == 0


def test_what_a_finished_batch_took_is_learnt() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a", "b")
        await one_iteration()
        rig.pool.replicas[0].finish(infer_s=0.25)

    rig = run(scenario)

    assert rig.batcher.n_batched == 2
    assert rig.batcher.cost_model.n_observed == 1
    assert rig.batcher.cost_model.predict(2) == 0.25


def test_target_latency_bounds_the_batch_by_what_was_learnt() -> None:
    async def scenario(rig: Rig) -> None:
        for n in (1, 2, 4, 8, 16):
            rig.batcher.cost_model.observe(n, 0.010 + 0.001 * n)
        rig.submit(*"abcdefgh")
        await one_iteration()

    rig = run(scenario, Batching(max_size=8, target_latency_s=0.0135))

    assert rig.pool.batches == [["a", "b", "c"]]


def test_one_sequential_client_never_waits_for_company() -> None:
    async def scenario(rig: Rig) -> None:
        for name in "abcdefghij":
            rig.submit(name)
            await one_iteration()
            rig.pool.replicas[0].finish()

    rig = run(scenario, Batching(max_wait_s=10.0))

    assert rig.pool.batches == [[name] for name in "abcdefghij"]
    assert rig.clock() == 100.0


async def show_arrivals(rig: Rig) -> None:
    """Let so many requests arrive in company that more of them are expected."""
    n_requests = 64
    rig.submit(*(f"early {number}" for number in range(n_requests)))
    await one_iteration()
    while rig.pool.is_working:
        rig.pool.replicas[0].finish()
        await one_iteration()
    rig.pool.replicas[0].batches.clear()


def test_a_lone_request_is_sent_once_it_has_waited_max_wait() -> None:
    async def scenario(rig: Rig) -> None:
        await show_arrivals(rig)
        rig.submit("a")
        await one_iteration()
        assert rig.pool.batches == []
        await asyncio.sleep(0.5)
        assert rig.pool.batches == []
        await asyncio.sleep(0.5)
        await one_iteration()

    rig = run(scenario, Batching(max_wait_s=1.0))

    assert rig.pool.batches == [["a"]]
    assert rig.clock() == pytest.approx(101.0)


def test_a_held_batch_takes_who_arrives_meanwhile_and_waits_no_longer_for_it() -> None:
    async def scenario(rig: Rig) -> None:
        await show_arrivals(rig)
        rig.submit("a")
        await asyncio.sleep(0.75)
        rig.submit("b")
        await one_iteration()
        assert rig.pool.batches == []
        await asyncio.sleep(0.25)
        await one_iteration()

    rig = run(scenario, Batching(max_wait_s=1.0))

    assert rig.pool.batches == [["a", "b"]]
    assert rig.clock() == pytest.approx(101.0)


def test_a_held_batch_that_gets_full_is_sent_at_once() -> None:
    async def scenario(rig: Rig) -> None:
        await show_arrivals(rig)
        rig.submit("a")
        await one_iteration()
        rig.submit("b")
        await one_iteration()

    rig = run(scenario, Batching(max_size=2, max_wait_s=1.0))

    assert rig.pool.batches == [["a", "b"]]
    assert rig.clock() == 100.0


def test_a_closed_batcher_sends_nothing_more() -> None:
    async def scenario(rig: Rig) -> None:
        await show_arrivals(rig)
        rig.submit("held")
        await one_iteration()
        rig.submit("just arrived")
        rig.batcher.close()
        await asyncio.sleep(5.0)

    rig = run(scenario, Batching(max_wait_s=1.0))

    assert rig.pool.batches == []


def names(jobs: list[Job], stage: str) -> list[str]:
    return [job.payload for job in jobs if job.stage == stage]


def test_a_replica_goes_on_with_a_full_batch_before_the_loop_has_heard_of_the_last_one() -> None:
    async def scenario(rig: Rig) -> None:
        jobs = rig.submit("a", "b")
        await one_iteration()
        jobs += rig.submit("c", "d", "e")
        await one_iteration()
        rig.clock.advance(3.0)

        assert rig.pool.take_up(0, rig.clock()) == ["c", "d"]
        assert len(rig.queue) == 3  # as far as the loop knows
        rig.clock.advance(1.0)
        rig.pool.tell()

        assert names(jobs, "infer") == ["a", "b", "c", "d"]
        assert len(rig.queue) == 1
        assert (jobs[2].times.queue_s, jobs[2].times.batch_size) == (3.0, 2)
        assert rig.batcher.n_batched == 2
        rig.pool.replicas[0].finish()
        assert rig.batcher.n_batched == 4

    rig = run(scenario, Batching(max_size=2))

    assert rig.pool.batches == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize(
    ("batching", "waiting"),
    [
        (Batching(max_size=3), ["b", "c"]),
        (Batching(max_size=2, max_cost=2), ["b", "c"]),
        (Batching(max_size=2, target_latency_s=1.0), ["b", "c"]),
    ],
    ids=["not full", "by cost", "by latency"],
)
def test_what_may_still_change_is_not_laid_out(batching: Batching, waiting: list[str]) -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a")
        await one_iteration()
        rig.submit(*waiting)
        await one_iteration()

        assert rig.pool.take_up(0, rig.clock()) == []

    run(scenario, batching)


@pytest.mark.parametrize(
    ("urgent", "expected"), [({"priority": 0}, ["u", "b"]), ({"tenant": "t"}, ["b", "u"])]
)
def test_whoever_is_served_before_those_laid_out_is_not_made_to_wait(
    urgent: dict[str, Any], expected: list[str]
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a")
        await one_iteration()
        rig.submit("b", "c")
        await one_iteration()
        rig.submit("u", **urgent)
        await one_iteration()

        assert rig.pool.take_up(0, rig.clock()) == []
        rig.pool.tell()

    rig = run(scenario, Batching(max_size=2))

    assert rig.pool.batches == [["a"], expected]


def test_another_batch_is_laid_out_when_the_first_one_is_withdrawn() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a")
        await one_iteration()
        _, leaving, *_ = rig.submit("b", "c", "d")
        await one_iteration()
        rig.batcher.withdraw()
        assert rig.queue.discard(leaving)
        await one_iteration()

        assert rig.pool.take_up(0, rig.clock()) == ["b", "d"]
        rig.pool.tell()

    run(scenario, Batching(max_size=2))


def test_what_was_taken_up_is_in_the_model_as_soon_as_somebody_asks() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a")
        await one_iteration()
        jobs = rig.submit("b", "c", "d")
        await one_iteration()
        rig.pool.take_up(0, rig.clock())
        assert names(jobs, "infer") == []

        rig.batcher.withdraw()

        assert names(jobs, "infer") == ["b", "c"]
        assert len(rig.queue) == 1

    run(scenario, Batching(max_size=2))


def test_no_other_replica_is_given_what_one_has_taken_up() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a", "b")
        await one_iteration()
        rig.submit("c", "d")
        await one_iteration()
        rig.submit("e", "f", "g", "h")
        await one_iteration()
        assert rig.pool.take_up(1, rig.clock()) == ["e", "f"]
        assert rig.pool.take_up(0, rig.clock()) == []
        rig.pool.tell()

    rig = run(scenario, Batching(max_size=2), n_replicas=2)

    assert rig.pool.batches == [["a", "b"], ["g", "h"], ["c", "d"], ["e", "f"]]


def test_what_is_too_large_for_the_memory_is_not_taken_up() -> None:
    async def scenario(rig: Rig) -> None:
        (first, second) = rig.submit("a", "b")
        await one_iteration()
        rig.submit("c", "d")
        await one_iteration()
        done = rig.pool.replicas[0]._done
        assert done is not None
        done(BatchReport(infer_s=0.01, too_large=[first, second]))

        assert rig.pool.take_up(0, rig.clock()) == ["c"]

    run(scenario, Batching(max_size=2))


def test_many_keys_are_not_looked_through_while_all_replicas_are_busy() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a")
        await one_iteration()
        for number, job in enumerate(rig.submit("b", "c", "d", "e")):
            rig.queue.discard(job)
            job.key = number
            assert rig.queue.reserve()
            rig.queue.put(job)
        planned: list[float] = []
        plan = rig.queue.plan

        def noting(limits: BatchLimits, now: float) -> Plan[Job]:
            planned.append(now)
            return plan(limits, now)

        rig.queue.plan = noting  # type: ignore[method-assign]
        rig.batcher.wake()
        await one_iteration()

        assert planned == []

    run(scenario, Batching(max_size=2))


def test_nothing_is_taken_up_from_a_closed_batcher() -> None:
    async def scenario(rig: Rig) -> None:
        rig.submit("a")
        await one_iteration()
        rig.submit("b", "c")
        await one_iteration()
        rig.batcher.close()

        assert rig.pool.take_up(0, rig.clock()) == []

    run(scenario, Batching(max_size=2))


def test_a_batcher_shows_its_queue_in_its_repr() -> None:
    rig = Rig(clock=FakeClock())

    assert repr(rig.batcher) == "<Batcher <RequestQueue 0 waiting, 0 reserved of 1000>>"
