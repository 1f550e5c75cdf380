"""How many replicas there are: laws for any load, and the moments at which one comes or goes."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.processes.scaling import LONG_WAIT_S, Scaling

GROW_AFTER_S = 3.0
SHRINK_AFTER_S = 60.0
CROWDED, CALM = 5 * LONG_WAIT_S, 0.0

waits = st.sampled_from([0.0, LONG_WAIT_S, 0.2, 5.0, math.inf]) | st.floats(0, 100)
steps = st.sampled_from([0.5, 1.0, 1.0, 1.0, 2.0, 61.0])
shares = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]) | st.floats(0, 1)


@st.composite
def bounds(draw: st.DrawFn) -> tuple[int, int]:
    least = draw(st.integers(1, 4))
    return least, draw(st.integers(least, 8))


@dataclass(frozen=True)
class Change:
    at_s: float
    step: int


@dataclass
class Model:
    """Replicas that do as they are told, loads included, under a load that it is given."""

    scaling: Scaling
    load_s: float = 0.0
    service_s: float = 0.02
    now: float = 0.0
    ready_at: list[float] = field(default_factory=list)

    def run(self, load: float, for_s: float) -> list[int]:
        """Ask once a second; `load` is how many replicas it would keep busy."""
        return list(self._wanted(load, for_s))

    def _wanted(self, load: float, for_s: float) -> Iterator[int]:
        for _ in range(int(for_s)):
            self.now += 1.0
            n_serving = max(1, sum(ready <= self.now for ready in self.ready_at))
            use = load / n_serving
            # The mean wait of an M/M/1 queue, which falls with each replica.
            wait_s = self.service_s * use / (1 - use) / n_serving if use < 1 else math.inf
            wanted = self.scaling.decide(
                self.now,
                n_replicas=max(1, len(self.ready_at)),
                n_loading=max(1, len(self.ready_at)) - n_serving,
                wait_s=wait_s,
                busy_share=min(1.0, use),
            )
            new = wanted - len(self.ready_at)
            self.ready_at = self.ready_at[:wanted] + [self.now + self.load_s] * new
            yield wanted


def turns_of(counts: list[int]) -> int:
    """Count how often growing became shrinking or the other way round."""
    moves = [after - before for before, after in itertools.pairwise(counts) if after != before]
    return sum((one > 0) != (other > 0) for one, other in itertools.pairwise(moves))


@given(
    limits=bounds(),
    seen=st.lists(
        st.tuples(steps, st.integers(0, 10), st.integers(0, 4), waits, shares), max_size=80
    ),
)
def test_whatever_is_seen_the_number_stays_in_bounds_and_no_change_follows_another_at_once(
    limits: tuple[int, int], seen: list[tuple[float, int, int, float, float]]
) -> None:
    least, most = limits
    scaling = Scaling(least, most)
    now, before = 0.0, least
    changes = [Change(-math.inf, 0)]

    for step_s, n_replicas, n_loading, wait_s, busy_share in seen:
        now += step_s
        wanted = scaling.decide(
            now,
            n_replicas=n_replicas,
            n_loading=min(n_loading, n_replicas),
            wait_s=wait_s,
            busy_share=busy_share,
        )
        assert least <= wanted <= most
        assert abs(wanted - before) <= 1
        if wanted != before:
            changes.append(Change(now, wanted - before))
        before = wanted

    for earlier, later in itertools.pairwise(changes):
        assert later.at_s - earlier.at_s >= (GROW_AFTER_S if later.step > 0 else SHRINK_AFTER_S)


@given(
    limits=bounds(),
    load=st.floats(0, 10),
    load_s=st.sampled_from([0.0, 1.0, 10.0, 100.0]),
    service_s=st.sampled_from([0.001, 0.02, 0.2, 2.0]),
)
def test_under_constant_load_the_number_only_rises_and_then_rests(
    limits: tuple[int, int], load: float, load_s: float, service_s: float
) -> None:
    model = Model(Scaling(*limits), load_s, service_s)

    counts = model.run(load, for_s=1200)

    assert counts == sorted(counts)
    assert len(set(counts[-300:])) == 1


@given(
    limits=bounds(),
    loads=st.tuples(st.floats(0, 10), st.floats(0, 10)),
    load_s=st.sampled_from([0.0, 10.0]),
    service_s=st.sampled_from([0.001, 0.02, 0.2, 2.0]),
)
def test_after_a_change_of_load_the_number_turns_once_at_most(
    limits: tuple[int, int], loads: tuple[float, float], load_s: float, service_s: float
) -> None:
    """It may find that it went one too low; it does not try that again."""
    model = Model(Scaling(*limits), load_s, service_s)
    model.run(loads[0], for_s=300)

    counts = model.run(loads[1], for_s=2400)

    assert turns_of(counts) <= 1
    assert len(set(counts[-300:])) == 1


@given(
    limits=bounds(),
    wait_s=st.floats(LONG_WAIT_S, 100, exclude_min=True) | st.just(math.inf),
    load_s=st.sampled_from([0.0, 10.0]),
)
def test_under_lasting_overload_every_replica_comes_that_may(
    limits: tuple[int, int], wait_s: float, load_s: float
) -> None:
    least, most = limits
    scaling = Scaling(least, most)
    ready_at = [0.0] * least

    counts = []
    for second in range(int((most - least) * (GROW_AFTER_S + load_s + 2)) + 1):
        n_loading = sum(ready > second for ready in ready_at)
        counts.append(
            scaling.decide(
                float(second),
                n_replicas=len(ready_at),
                n_loading=n_loading,
                wait_s=wait_s,
                busy_share=1.0,
            )
        )
        ready_at += [second + load_s] * (counts[-1] - len(ready_at))

    assert counts == sorted(counts)
    assert counts[-1] == most


@given(limits=bounds())
def test_without_load_every_replica_goes_that_may(limits: tuple[int, int]) -> None:
    least, most = limits
    model = Model(Scaling(least, most))
    model.run(1e9, for_s=60)

    counts = model.run(0.0, for_s=(most - least) * (SHRINK_AFTER_S + 2) + 1)

    assert (counts[0], counts[-1]) == (most, least)
    assert counts == sorted(counts, reverse=True)


def ask(scaling: Scaling, second: float, wait_s: float, n_replicas: int, **more: float) -> int:
    return scaling.decide(
        second,
        n_replicas=n_replicas,
        wait_s=wait_s,
        busy_share=more.get("busy_share", 1.0),
        n_loading=int(more.get("n_loading", 0)),
    )


def test_another_replica_comes_once_waits_were_long_for_three_seconds() -> None:
    scaling = Scaling(1, 4)

    counts = [ask(scaling, second, CROWDED, 1) for second in (0.0, 1.0, 2.0, 2.9, 3.0)]

    assert counts == [1, 1, 1, 1, 2]


def test_a_wait_at_the_threshold_is_not_long_and_a_short_burst_changes_nothing() -> None:
    scaling = Scaling(1, 4)
    burst = [CROWDED, CROWDED, CROWDED, LONG_WAIT_S]

    counts = [ask(scaling, second, wait_s, 1) for second, wait_s in enumerate(5 * burst)]

    assert counts == [1] * 20


def test_the_threshold_may_be_set_for_models_with_long_batches() -> None:
    scaling = Scaling(1, 2, long_wait_s=2.0)

    assert [ask(scaling, second, 1.9, 1) for second in range(9)] == [1] * 9
    assert [ask(scaling, second, 2.1, 1) for second in range(10, 14)] == [1, 1, 1, 2]


@pytest.mark.parametrize("n_seen", [1, 2], ids=["not counted", "counted as loading"])
def test_nothing_grows_before_the_last_replica_serves_however_long_it_loads(n_seen: int) -> None:
    scaling = Scaling(1, 4)
    for second in range(4):
        ask(scaling, second, CROWDED, 1)

    loading = [
        ask(scaling, second, CROWDED, n_seen, n_loading=n_seen - 1) for second in range(4, 300)
    ]
    serving = [ask(scaling, second, CROWDED, 2) for second in range(300, 304)]

    assert loading == [2] * 296
    assert serving == [2, 2, 2, 3]


def test_a_replica_that_died_is_not_made_up_for_by_another_one() -> None:
    scaling = Scaling(2, 4)

    assert [ask(scaling, second, math.inf, 1) for second in range(30)] == [2] * 30


def grown_to_three() -> Scaling:
    scaling = Scaling(1, 4)
    for second in range(8):
        ask(scaling, second - 8, CROWDED, scaling.n_wanted)
    assert scaling.n_wanted == 3
    return scaling


def test_a_replica_goes_once_the_others_had_room_for_a_minute() -> None:
    scaling = grown_to_three()

    counts = [ask(scaling, second, CALM, 3, busy_share=0.46) for second in range(61)]

    assert counts == [3] * 60 + [2]


def test_a_replica_stays_while_the_others_would_be_busier_than_seventy_percent() -> None:
    scaling = grown_to_three()

    counts = [ask(scaling, second, CALM, 3, busy_share=0.47) for second in range(300)]

    assert counts == [3] * 300


@pytest.mark.parametrize("trouble", [{"wait_s": CROWDED}, {"wait_s": CALM, "busy_share": 0.9}])
def test_a_moment_of_load_begins_the_minute_anew(trouble: dict[str, float]) -> None:
    scaling = grown_to_three()

    before = [ask(scaling, second, CALM, 3, busy_share=0.1) for second in range(59)]
    ask(scaling, 59, n_replicas=3, **{"busy_share": 0.1, **trouble})
    after = [ask(scaling, second, CALM, 3, busy_share=0.1) for second in range(60, 121)]

    assert before + after == [3] * 119 + [2]


def test_a_number_of_replicas_that_was_too_few_is_tried_again_only_with_less_load() -> None:
    scaling = Scaling(1, 4)
    for second in range(4):
        ask(scaling, second, CROWDED, 1, busy_share=0.6)  # slow batches: waits without much load

    same = [ask(scaling, second, CALM, 2, busy_share=0.3) for second in range(10, 200)]
    less = [ask(scaling, second, CALM, 2, busy_share=0.2) for second in range(200, 261)]

    assert same == [2] * 190
    assert less == [2] * 60 + [1]


def test_equal_bounds_never_change_anything() -> None:
    scaling = Scaling(2, 2)

    assert [ask(scaling, second, CROWDED, 2) for second in range(20)] == [2] * 20
    assert [ask(scaling, second, CALM, 2, busy_share=0.0) for second in range(20, 200)] == [2] * 180


def test_it_shows_its_number_and_bounds() -> None:
    assert repr(Scaling(2, 5)) == "<Scaling 2 of 2 to 5>"
