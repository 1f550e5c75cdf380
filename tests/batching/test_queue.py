"""Laws of the queue, and its life against a plain list."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.strategies import NOW, Waiting, arrivals, batch_limits

from mlserve.batching.queue import BatchLimits, RequestQueue
from mlserve.testing import FakeClock

TENANTS = (None, "x", "y", "z")


def queue_of(requests: list[Waiting]) -> RequestQueue[Waiting]:
    queue: RequestQueue[Waiting] = RequestQueue(capacity=max(1, len(requests)))
    for request in requests:
        assert queue.reserve()
        queue.put(request)
    return queue


def cost_of(batch: list[Waiting], limits: BatchLimits) -> int:
    if limits.padded:
        return max(request.cost for request in batch) * len(batch)
    return sum(request.cost for request in batch)


def by_age_within_priority(requests: list[Waiting]) -> list[Waiting]:
    return sorted(requests, key=lambda request: (request.priority, request.enqueued_at))


@given(arrivals(tenants=TENANTS), batch_limits())
def test_a_batch_is_never_larger_than_max_size(
    requests: list[Waiting], limits: BatchLimits
) -> None:
    plan = queue_of(requests).take(limits, NOW)

    assert len(plan.batch) <= limits.max_size


@given(arrivals(tenants=TENANTS), batch_limits())
def test_a_batch_never_costs_more_than_max_cost_unless_it_is_one_request_alone(
    requests: list[Waiting], limits: BatchLimits
) -> None:
    plan = queue_of(requests).take(limits, NOW)

    if len(plan.batch) > 1 and limits.max_cost is not None:
        assert cost_of(plan.batch, limits) <= limits.max_cost


@given(arrivals(tenants=TENANTS), batch_limits())
def test_only_equal_keys_share_a_batch(requests: list[Waiting], limits: BatchLimits) -> None:
    plan = queue_of(requests).take(limits, NOW)

    assert len({request.key for request in plan.batch}) <= 1


@given(arrivals(), batch_limits(padded=False))
def test_an_unpadded_batch_keeps_the_order_by_priority_and_age(
    requests: list[Waiting], limits: BatchLimits
) -> None:
    plan = queue_of(requests).take(limits, NOW)

    assert plan.batch == by_age_within_priority(plan.batch)


@given(arrivals(), batch_limits(padded=False))
def test_an_unpadded_batch_leaves_nobody_of_its_key_out_who_was_there_before(
    requests: list[Waiting], limits: BatchLimits
) -> None:
    plan = queue_of(requests).take(limits, NOW)

    alike = [r for r in requests if not r.is_dead() and plan.batch and r.key == plan.batch[0].key]
    assert plan.batch == by_age_within_priority(alike)[: len(plan.batch)]


@given(arrivals(tenants=TENANTS), batch_limits(padded=True))
def test_a_padded_batch_asks_the_lower_priority_number_first(
    requests: list[Waiting], limits: BatchLimits
) -> None:
    plan = queue_of(requests).take(limits, NOW)

    priorities = [request.priority for request in plan.batch]
    assert priorities == sorted(priorities)


@given(arrivals(), batch_limits())
def test_the_oldest_of_the_first_priority_is_always_in_the_batch(
    requests: list[Waiting], limits: BatchLimits
) -> None:
    plan = queue_of(requests).take(limits, NOW)

    alive = [request for request in requests if not request.is_dead()]
    assert plan.batch[:1] == by_age_within_priority(alive)[:1]


@given(arrivals(tenants=TENANTS), batch_limits())
def test_expired_and_abandoned_requests_are_never_in_a_batch(
    requests: list[Waiting], limits: BatchLimits
) -> None:
    plan = queue_of(requests).take(limits, NOW)

    assert not any(request.is_dead() for request in plan.batch)
    assert all(request.is_dead() for request in plan.dead)


@given(arrivals(tenants=TENANTS), batch_limits())
def test_taking_until_it_is_empty_loses_nothing_and_gives_nothing_twice(
    requests: list[Waiting], limits: BatchLimits
) -> None:
    queue = queue_of(requests)

    given_out: list[Waiting] = []
    while len(queue) > 0:
        plan = queue.take(limits, NOW)
        assert plan.batch or plan.dead
        given_out += [*plan.batch, *plan.dead]

    assert len(given_out) == len(requests)
    assert {id(request) for request in given_out} == {id(request) for request in requests}
    assert queue.occupied == 0


@given(arrivals(tenants=TENANTS), batch_limits())
def test_take_gives_what_plan_said(requests: list[Waiting], limits: BatchLimits) -> None:
    queue = queue_of(requests)

    planned = queue.plan(limits, NOW)

    assert queue.take(limits, NOW) == planned


@given(arrivals(), batch_limits(), st.integers(1, 12))
def test_nothing_of_any_cost_above_zero_could_join_a_full_batch(
    requests: list[Waiting], limits: BatchLimits, cost: int
) -> None:
    plan = queue_of(requests).plan(limits, NOW)
    if not plan.is_full:
        return

    newcomer = Waiting(
        priority=9,
        key=plan.batch[0].key,
        cost=cost,
        enqueued_at=NOW,
    )
    again = queue_of([*requests, newcomer]).plan(limits, NOW)

    assert again.batch == plan.batch


@given(arrivals(tenants=TENANTS))
def test_clear_gives_everything_oldest_of_the_first_priority_first(
    requests: list[Waiting],
) -> None:
    queue = queue_of(requests)

    cleared = queue.clear()

    assert cleared == by_age_within_priority(requests)
    assert len(queue) == queue.occupied == 0


@given(
    st.lists(st.builds(Waiting, cost=st.integers(0, 6)), max_size=14),
    batch_limits(padded=False),
    st.integers(0, 3),
)
def test_the_living_of_one_key_are_taken_in_the_order_in_which_they_came(
    requests: list[Waiting], limits: BatchLimits, n_dead: int
) -> None:
    queue = queue_of(requests)
    for request in requests[1::3][:n_dead]:
        request.abandoned = True

    taken: list[Waiting] = []
    while len(queue) > 0:
        plan = queue.take(limits, NOW)
        taken += plan.batch
        assert plan.is_full or len(queue) == 0

    assert taken == [request for request in requests if not request.abandoned]


def test_a_request_dearer_than_max_cost_runs_alone() -> None:
    dear, cheap = Waiting(cost=9), Waiting(cost=1)

    for padded in (False, True):
        limits = BatchLimits(max_size=4, max_cost=5, padded=padded)
        plan = queue_of([dear, cheap]).take(limits, NOW)
        assert plan.batch == [dear]
        assert plan.is_full


def test_a_padded_batch_takes_those_nearest_in_cost_to_the_oldest() -> None:
    oldest, far, near = Waiting(cost=10), Waiting(cost=2), Waiting(cost=9)

    plan = queue_of([oldest, far, near]).take(
        BatchLimits(max_size=2, max_cost=100, padded=True), NOW
    )

    assert plan.batch == [oldest, near]


def test_a_padded_batch_passes_over_one_that_would_pad_the_others_too_far() -> None:
    oldest, long, short = Waiting(cost=4), Waiting(cost=6), Waiting(cost=1)

    plan = queue_of([oldest, long, short]).take(
        BatchLimits(max_size=4, max_cost=8, padded=True), NOW
    )

    assert plan.batch == [oldest, short]


def test_a_batch_with_room_left_is_not_full() -> None:
    plan = queue_of([Waiting()]).plan(BatchLimits(max_size=2, max_cost=5), NOW)

    assert not plan.is_full


def test_a_plan_knows_when_its_oldest_request_came() -> None:
    urgent, early = Waiting(priority=0, enqueued_at=7.0), Waiting(priority=1, enqueued_at=3.0)

    plan = queue_of([early, urgent]).plan(BatchLimits(max_size=2), NOW)

    assert plan.oldest_at == 3.0


def test_a_queue_is_plain_while_whoever_comes_last_is_served_last() -> None:
    queue = queue_of([Waiting()])
    assert queue.is_plain
    for other in (Waiting(priority=1), Waiting(tenant="t"), Waiting(key="k")):
        assert not queue_of([Waiting(), other]).is_plain


@pytest.mark.parametrize("other", [Waiting(priority=1), Waiting(tenant="t"), Waiting(key="k")])
def test_a_queue_is_plain_again_once_whoever_was_different_is_served(other: Waiting) -> None:
    queue = queue_of([Waiting(), other])
    for _ in range(2):  # whoever comes first after it may still be the other one
        while len(queue):
            queue.take(BatchLimits(max_size=1), NOW)
        queue.reserve()
        queue.put(Waiting())

    assert queue.is_plain
    assert queue.ahead_of(0) == 1


def test_an_empty_queue_plans_nothing() -> None:
    plan = queue_of([]).take(BatchLimits(max_size=1), NOW)

    assert (plan.batch, plan.is_full, plan.dead) == ([], False, [])


def test_a_full_queue_refuses_a_place() -> None:
    queue: RequestQueue[Waiting] = RequestQueue(capacity=1)

    assert [queue.reserve(), queue.reserve()] == [True, False]


def test_a_smaller_capacity_refuses_new_requests_and_drops_none() -> None:
    queue = queue_of([Waiting(), Waiting()])

    queue.capacity = 1

    assert not queue.reserve()
    assert len(queue) == 2


def test_a_request_cannot_be_put_twice() -> None:
    request = Waiting()
    queue = queue_of([request])
    queue.capacity = 2
    queue.reserve()

    with pytest.raises(ValueError, match="already in the queue"):
        queue.put(request)

    assert queue.occupied == 2


def test_a_request_cannot_be_put_without_a_place() -> None:
    queue: RequestQueue[Waiting] = RequestQueue(capacity=1)

    with pytest.raises(ValueError, match="No place is reserved"):
        queue.put(Waiting())

    assert len(queue) == 0


def test_a_request_that_was_admitted_may_be_put_without_a_reserved_place() -> None:
    queue = queue_of([Waiting()])
    queue.capacity = 2
    queue.reserve()

    queue.put(Waiting(), is_reserved=False)

    assert (len(queue), queue.occupied) == (2, 3)


def test_only_what_is_as_urgent_or_more_so_is_ahead_of_a_request() -> None:
    tenants = [Waiting(priority=number % 3, tenant=f"tenant {number % 2}") for number in range(9)]
    queue = queue_of(tenants)
    queue.capacity = 10
    queue.reserve()

    assert [queue.ahead_of(priority) for priority in range(4)] == [4, 7, 10, 10]


def test_a_queue_shows_what_waits_in_its_repr() -> None:
    queue = queue_of([Waiting(), Waiting()])
    queue.capacity = 3
    queue.reserve()

    assert repr(queue) == "<RequestQueue 2 waiting, 1 reserved of 3>"


class QueueMachine(RuleBasedStateMachine):
    """The queue beside a list of what waits and a list of what came out."""

    capacity = 6
    tenants: tuple[str | None, ...] = (None,)

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(NOW)
        self.queue: RequestQueue[Waiting] = RequestQueue(self.capacity)
        self.reserved = 0
        self.waiting: list[Waiting] = []
        self.put_in: list[Waiting] = []
        self.came_out: list[Waiting] = []

    @rule()
    def reserve(self) -> None:
        expected = self.reserved + len(self.waiting) < self.capacity
        assert self.queue.reserve() is expected
        self.reserved += expected

    @rule()
    def release(self) -> None:
        if self.reserved:
            self.queue.release()
            self.reserved -= 1
        else:
            with pytest.raises(ValueError, match="No place"):
                self.queue.release()

    @rule(
        data=st.data(),
        priority=st.integers(0, 2),
        key=st.sampled_from(["a", "b"]),
        cost=st.integers(0, 6),
        lives_s=st.sampled_from([0.5, 2.0, 100.0]),
    )
    def put(self, data: st.DataObject, priority: int, key: str, cost: int, lives_s: float) -> None:
        request = Waiting(
            priority=priority,
            tenant=data.draw(st.sampled_from(self.tenants)),
            key=key,
            cost=cost,
            deadline=self.clock() + lives_s,
            enqueued_at=self.clock(),
        )
        if not self.reserved:
            with pytest.raises(ValueError, match="No place"):
                self.queue.put(request)
            return
        self.queue.put(request)
        self.reserved -= 1
        self.waiting.append(request)
        self.put_in.append(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def put_again(self, data: st.DataObject) -> None:
        with pytest.raises(ValueError, match="already"):
            self.queue.put(data.draw(st.sampled_from(self.waiting)))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).abandoned = True

    @precondition(lambda self: self.put_in)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.put_in))
        was_there = request in self.waiting
        assert self.queue.discard(request) is was_there
        if was_there:
            self._leave([request])

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(limits=batch_limits())
    def plan(self, limits: BatchLimits) -> None:
        before = list(self.waiting)
        plan = self.queue.plan(limits, self.clock())
        assert all(request in before for request in (*plan.batch, *plan.dead))

    @rule(limits=batch_limits())
    def take(self, limits: BatchLimits) -> None:
        now = self.clock()
        plan = self.queue.take(limits, now)
        alive = [request for request in self._ordered() if not request.is_dead(now)]
        self._check(plan.batch, alive, limits)
        if not alive:
            assert len(plan.dead) == len(self.waiting)
        self._leave([*plan.batch, *plan.dead])

    @rule()
    def clear(self) -> None:
        assert self.queue.clear() == self._ordered()
        self._leave(list(self.waiting))

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.occupied == self.reserved + len(self.waiting) <= self.capacity

    @invariant()
    def everything_is_either_waiting_or_came_out_once(self) -> None:
        accounted = [id(request) for request in (*self.waiting, *self.came_out)]
        assert sorted(accounted) == sorted(id(request) for request in self.put_in)

    def _check(self, batch: list[Waiting], alive: list[Waiting], limits: BatchLimits) -> None:
        assert batch[:1] == alive[:1]
        if not limits.padded:
            assert batch == self._expected(alive, limits)

    def _ordered(self) -> list[Waiting]:
        return sorted(self.waiting, key=lambda request: request.priority)  # stable: by age

    def _leave(self, requests: list[Waiting]) -> None:
        for request in requests:
            self.waiting.remove(request)
        self.came_out += requests

    @staticmethod
    def _expected(alive: list[Waiting], limits: BatchLimits) -> list[Waiting]:
        batch: list[Waiting] = []
        for request in alive:
            if request.key != alive[0].key:
                continue
            total = sum(r.cost for r in batch) + request.cost
            is_too_dear = limits.max_cost is not None and total > limits.max_cost
            if batch and (is_too_dear or len(batch) == limits.max_size):
                break
            batch.append(request)
        return batch


TestQueueAgainstAList = QueueMachine.TestCase
TestQueueAgainstAList.settings = settings(max_examples=60, stateful_step_count=30)


class TenantsMachine(QueueMachine):
    """The same with several tenants, of each of which the oldest is served first."""

    tenants = TENANTS

    def _check(self, batch: list[Waiting], alive: list[Waiting], limits: BatchLimits) -> None:
        assert bool(batch) == bool(alive)
        if not batch:
            return
        assert batch[0].priority == alive[0].priority
        alike = [request for request in alive if request.key == batch[0].key]
        if limits.padded:
            assert all(request in alike for request in batch)
            return
        for tenant in self.tenants:
            taken = [request for request in batch if request.tenant == tenant]
            assert taken == [r for r in alike if r.tenant == tenant][: len(taken)]
        is_small = len(batch) < limits.max_size and limits.max_cost is None
        assert not is_small or len(batch) == len(alike)


TestQueueOfTenantsAgainstAList = TenantsMachine.TestCase
TestQueueOfTenantsAgainstAList.settings = settings(max_examples=60, stateful_step_count=30)
