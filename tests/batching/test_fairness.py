"""Nobody waits for ever: whatever comes later, what is older is served first."""

from collections import Counter
from math import ceil

from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import NOW, Waiting, arrivals, batch_limits

from mlserve.batching.queue import BatchLimits, RequestQueue

KEYS = st.sampled_from([None, "a", "b", "c"])
WAITING = st.lists(
    st.builds(Waiting, priority=st.integers(0, 2), key=KEYS, cost=st.integers(0, 12)),
    min_size=1,
    max_size=14,
)


def newcomers(priority: int) -> st.SearchStrategy[list[Waiting]]:
    """Draw what arrives between two batches, none of it more urgent."""
    urgency = st.integers(priority, 3)
    return st.lists(
        st.builds(Waiting, priority=urgency, key=KEYS, cost=st.integers(0, 12)), max_size=6
    )


def add(queue: RequestQueue[Waiting], requests: list[Waiting]) -> None:
    for request in requests:
        assert queue.reserve()
        queue.put(request)


def n_batches_until(
    queue: RequestQueue[Waiting], request: Waiting, limits: BatchLimits, data: st.DataObject
) -> int:
    """Count batches until a request is in one, while others arrive before each of them."""
    n_batches = 0
    while True:
        plan = queue.take(limits, NOW)
        n_batches += bool(plan.batch)
        if request in plan.batch:
            return n_batches
        assert plan.batch or plan.dead
        add(queue, data.draw(newcomers(request.priority)))


def before(request: Waiting, requests: list[Waiting]) -> list[Waiting]:
    """Give what is served before a request: the more urgent, and the older of its priority."""
    place = requests.index(request)
    return [
        other
        for index, other in enumerate(requests)
        if other is not request and (other.priority, index) < (request.priority, place)
    ]


@given(WAITING, batch_limits(), st.data())
def test_a_request_waits_for_no_more_batches_than_there_were_requests_before_it(
    requests: list[Waiting], limits: BatchLimits, data: st.DataObject
) -> None:
    request = data.draw(st.sampled_from(requests))
    queue: RequestQueue[Waiting] = RequestQueue(capacity=1_000_000)
    add(queue, requests)

    n_batches = n_batches_until(queue, request, limits, data)

    assert n_batches <= len(before(request, requests)) + 1


@given(WAITING, st.integers(1, 5), st.data())
def test_of_each_key_a_request_waits_for_no_more_than_full_batches_of_what_was_before_it(
    requests: list[Waiting], max_size: int, data: st.DataObject
) -> None:
    request = data.draw(st.sampled_from(requests))
    queue: RequestQueue[Waiting] = RequestQueue(capacity=1_000_000)
    add(queue, requests)

    n_batches = n_batches_until(queue, request, BatchLimits(max_size=max_size), data)

    of_key = Counter(other.key for other in (*before(request, requests), request))
    assert n_batches <= sum(ceil(n / max_size) for n in of_key.values())


@given(arrivals(), batch_limits(), st.data())
def test_dead_requests_cost_those_behind_them_no_batch(
    requests: list[Waiting], limits: BatchLimits, data: st.DataObject
) -> None:
    alive = [request for request in requests if not request.is_dead()]
    if not alive:
        return
    request = data.draw(st.sampled_from(alive))
    queue: RequestQueue[Waiting] = RequestQueue(capacity=1_000_000)
    add(queue, requests)

    n_batches = n_batches_until(queue, request, limits, data)

    assert n_batches <= len(before(request, alive)) + 1


def test_one_heavy_key_does_not_starve_nine_light_ones() -> None:
    n_heavy, limits = 200, BatchLimits(max_size=8)
    queue: RequestQueue[Waiting] = RequestQueue(capacity=1_000_000)
    add(queue, [Waiting(key="heavy") for _ in range(n_heavy)])
    light = [Waiting(key=f"light {number}") for number in range(9)]
    add(queue, light)

    served_in: dict[int, int] = {}
    for number in range(100):
        batch = queue.take(limits, NOW).batch
        served_in |= {id(request): number for request in batch}
        add(queue, [Waiting(key="heavy") for _ in batch])  # it always has as many waiting

    n_before = n_heavy // limits.max_size
    assert [served_in[id(request)] for request in light] == list(range(n_before, n_before + 9))


def test_requests_of_one_client_that_floods_the_queue_do_not_overtake_others() -> None:
    limits = BatchLimits(max_size=8)
    queue: RequestQueue[Waiting] = RequestQueue(capacity=1_000_000)
    light = Waiting()
    add(queue, [Waiting() for _ in range(20)])
    add(queue, [light])

    n_batches = 0
    while light not in queue.take(limits, NOW).batch:
        n_batches += 1
        add(queue, [Waiting() for _ in range(50)])

    assert n_batches == 20 // limits.max_size
