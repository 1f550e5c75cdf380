"""Laws of the turns that tenants take in one queue."""

from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import NOW, Waiting, arrivals, batch_limits

from mlserve.batching.queue import BatchLimits, RequestQueue

NAMES = ("a", "b", "c")
KEYS = st.sampled_from([None, "k"])
BACKLOGS = st.lists(
    st.lists(st.integers(0, 12), min_size=1, max_size=10), min_size=2, max_size=len(NAMES)
)
ONE = BatchLimits(max_size=1)


def add(queue: RequestQueue[Waiting], *requests: Waiting) -> None:
    for request in requests:
        assert queue.reserve()
        queue.put(request)


def queue_of(*requests: Waiting) -> RequestQueue[Waiting]:
    queue: RequestQueue[Waiting] = RequestQueue(capacity=1_000_000)
    add(queue, *requests)
    return queue


def charge(request: Waiting) -> int:
    return max(1, request.cost)


def order_of(queue: RequestQueue[Waiting]) -> list[str | None]:
    """Give whose requests come one after the other."""
    tenants = []
    while len(queue) > 0:
        tenants += [request.tenant for request in queue.take(ONE, NOW).batch]
    return tenants


@given(BACKLOGS, st.integers(1, 5), st.none() | st.integers(1, 40))
def test_who_always_waits_is_served_as_much_as_anybody_but_for_one_request_of_each(
    costs: list[list[int]], max_size: int, max_cost: int | None
) -> None:
    backlog = {
        name: [Waiting(tenant=name, cost=cost) for cost in row]
        for name, row in zip(NAMES, costs, strict=False)
    }
    queue = queue_of(*(request for row in backlog.values() for request in row))
    left = {name: len(row) for name, row in backlog.items()}
    served: Counter[str | None] = Counter(dict.fromkeys(backlog, 0))

    while all(left.values()):
        for request in queue.take(BatchLimits(max_size=max_size, max_cost=max_cost), NOW).batch:
            if not all(left.values()):
                return
            served[request.tenant] += charge(request)
            left[str(request.tenant)] -= 1
            for one, other in combinations(backlog, 2):
                bound = sum(max(map(charge, backlog[name])) for name in (one, other))
                assert abs(served[one] - served[other]) <= bound


@given(
    st.lists(st.builds(Waiting, tenant=st.sampled_from(NAMES), key=KEYS), max_size=20),
    KEYS,
    st.booleans(),
    st.integers(1, 4),
    st.integers(0, 6),
    st.data(),
)
def test_who_has_nothing_waiting_is_served_before_anybody_has_had_two_turns(
    requests: list[Waiting],
    key: str | None,
    padded: bool,
    max_size: int,
    n_batches_before: int,
    data: st.DataObject,
) -> None:
    limits = BatchLimits(max_size=max_size, max_cost=100, padded=padded)
    queue = queue_of(*requests)
    for _ in range(n_batches_before):
        queue.take(limits, NOW)
    newcomer = Waiting(tenant="new", key=key)
    add(queue, newcomer)

    first_of: Counter[str | None] = Counter()
    while newcomer not in (batch := queue.take(limits, NOW).batch):
        first_of[batch[0].tenant] += 1
        flood = st.lists(st.builds(Waiting, tenant=st.sampled_from(NAMES), key=KEYS), max_size=4)
        add(queue, *data.draw(flood))

    assert max(first_of.values(), default=0) <= 1


@given(arrivals(), batch_limits(), st.sampled_from(["x", None]))
def test_one_tenant_is_served_as_if_there_were_no_tenants(
    requests: list[Waiting], limits: BatchLimits, name: str | None
) -> None:
    queue = queue_of(*requests)
    plain = []
    while len(queue) > 0:
        plan = queue.take(limits, NOW)
        plain.append([*plan.batch, *plan.dead])

    for request in requests:
        request.tenant = name
    queue = queue_of(*requests)
    for expected in plain:
        plan = queue.take(limits, NOW)
        assert [*plan.batch, *plan.dead] == expected


def test_nine_light_tenants_share_the_next_batch_with_a_heavy_one() -> None:
    queue = queue_of(*(Waiting(tenant="heavy") for _ in range(200)))
    for _ in range(3):
        queue.take(BatchLimits(max_size=16), NOW)
    light = [Waiting(tenant=f"light {number}") for number in range(9)]
    add(queue, *light)

    batch = queue.take(BatchLimits(max_size=16), NOW).batch

    assert set(light) <= set(batch)
    assert len(batch) == 16


def test_turns_are_taken_by_cost() -> None:
    dear = [Waiting(tenant="dear", cost=3) for _ in range(2)]
    cheap = [Waiting(tenant="cheap") for _ in range(6)]

    order = order_of(queue_of(*dear, *cheap))

    assert order == ["dear", "cheap", "cheap", "cheap", "dear", "cheap", "cheap", "cheap"]


def test_a_request_that_costs_nothing_takes_a_turn_all_the_same() -> None:
    free = [Waiting(tenant="free", cost=0) for _ in range(3)]

    order = order_of(queue_of(*free, Waiting(tenant="other")))

    assert order == ["free", "other", "free", "free"]


def test_who_was_away_has_saved_no_turns() -> None:
    queue = queue_of(*(Waiting(tenant="busy") for _ in range(50)), Waiting(tenant="back"))
    for _ in range(40):
        queue.take(ONE, NOW)
    add(queue, *(Waiting(tenant="back") for _ in range(3)))

    assert order_of(queue)[:6] == ["back", "busy", "back", "busy", "back", "busy"]


def test_who_was_served_dearly_waits_also_if_it_was_away_meanwhile() -> None:
    queue = queue_of(Waiting(tenant="dear", cost=4), *(Waiting(tenant="busy") for _ in range(9)))
    queue.take(ONE, NOW)
    add(queue, Waiting(tenant="dear"))

    assert order_of(queue)[:6] == [*["busy"] * 5, "dear"]


def test_what_expires_costs_its_tenant_no_turn() -> None:
    queue = queue_of(
        *(Waiting(tenant="late", deadline=NOW) for _ in range(5)),
        *(Waiting(tenant="other") for _ in range(3)),
    )
    add(queue, Waiting(tenant="late"), Waiting(tenant="late"))

    assert order_of(queue) == ["other", "late", "other", "late", "other"]


def test_once_nothing_waits_who_was_served_what_is_forgotten() -> None:
    queue = queue_of(*(Waiting(tenant=f"tenant {n}", cost=n) for n in range(100)))
    order_of(queue)

    add(queue, Waiting(tenant="tenant 99"), Waiting(tenant="tenant 1"))

    assert order_of(queue) == ["tenant 99", "tenant 1"]


def test_a_more_urgent_tenant_goes_first_however_much_it_had() -> None:
    queue = queue_of(*(Waiting(tenant="urgent") for _ in range(3)))
    add(queue, Waiting(tenant="patient", priority=1))

    assert order_of(queue) == ["urgent", "urgent", "urgent", "patient"]
