"""How requests are divided among versions."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve import ConfigurationError
from mlserve.traffic import Shadow, Traffic, point_of

VERSIONS = ["v1", "v2", "v10"]
POINTS = st.floats(0, 1, exclude_max=True)


@st.composite
def weights(draw: st.DrawFn) -> dict[str, float]:
    parts = draw(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any))
    return {name: part / sum(parts) for name, part in zip(VERSIONS, parts, strict=True)}


def checked(given_weights: Any, shadow: Any = None) -> Traffic:
    return Traffic.checked(given_weights, Shadow.of(shadow), VERSIONS)


@given(weights(), POINTS)
def test_a_version_without_weight_is_never_chosen(given: dict[str, float], point: float) -> None:
    chosen = checked(given).choose(point, VERSIONS)

    assert chosen is not None
    assert given[chosen] > 0


@given(weights(), POINTS, st.sets(st.sampled_from(VERSIONS)))
def test_only_a_version_that_can_answer_is_chosen(
    given: dict[str, float], point: float, able: set[str]
) -> None:
    chosen = checked(given).choose(point, able)

    if any(given[name] > 0 for name in able):
        assert chosen in able
    else:
        assert chosen is None


@given(weights())
def test_each_version_gets_its_part_of_the_line(given: dict[str, float]) -> None:
    traffic = checked(given)
    n = 2000

    counts = Counter(traffic.choose(i / n, VERSIONS) for i in range(n))

    for name, weight in given.items():
        assert abs(counts[name] / n - weight) <= 2 / n


@given(st.floats(0, 1), st.floats(0, 1), POINTS)
def test_of_two_versions_only_those_move_whose_part_changes_hands(
    before: float, after: float, point: float
) -> None:
    def chosen(first: float) -> str | None:
        return checked({"v1": first, "v2": 1 - first}).choose(point, VERSIONS)

    if chosen(before) != chosen(after):
        low, high = sorted((before, after))
        assert low - 1e-9 <= point <= high + 1e-9


@given(st.text(), st.text())
def test_a_key_always_has_the_same_point_on_the_line(salt: str, key: str) -> None:
    point = point_of(salt, key)

    assert point == point_of(salt, key)
    assert 0 <= point < 1


def test_the_points_of_keys_are_spread_over_the_line() -> None:
    tenths = Counter(int(point_of("m", f"client-{i}") * 10) for i in range(5000))

    assert all(400 < tenths[tenth] < 600 for tenth in range(10))


def test_the_points_of_one_model_say_nothing_of_those_of_another() -> None:
    halves = Counter(
        (point_of("a", str(i)) < 0.5, point_of("b", str(i)) < 0.5) for i in range(4000)
    )

    assert all(850 < n < 1150 for n in halves.values())


def test_the_main_version_has_the_greatest_weight_or_is_the_newest() -> None:
    assert checked({"v1": 0.9, "v10": 0.1}).main == "v1"
    assert checked({"v2": 0.5, "v10": 0.5}).main == "v10"


def test_the_weights_stand_in_the_order_of_the_versions() -> None:
    assert list(checked({"v10": 0.5, "v2": 0.25, "v1": 0.25}).weights) == ["v1", "v2", "v10"]


WRONG = [
    ({}, None, "such as"),
    ([("v1", 1)], None, "such as"),
    ({"v1": 0.9}, None, "sum to 1, got 0.9"),
    ({"v1": 0.6, "v2": 0.6}, None, "sum to 1, got 1.2"),
    ({"v1": 1.5, "v2": -0.5}, None, "the weight of v1"),
    ({"v1": 1, "v2": -0.0001}, None, "the weight of v2"),
    ({"v1": math.nan}, None, "the weight of v1"),
    ({"v1": "1"}, None, "the weight of v1"),
    ({"v1": True}, None, "the weight of v1"),
    ({"v3": 1.0}, None, "no version 'v3'; there is `v1`, `v2`, `v10`"),
    ({"v1": 1.0}, "v3", "no version 'v3'"),
    ({"v1": 1.0}, "v1", "nothing would be copied"),
    ({"v1": 1.0}, 2, "`shadow` must be"),
    ({"v1": 1.0}, ("v2", 2), "`share` must be"),
]


@pytest.mark.parametrize(("given", "shadow", "message"), WRONG)
def test_what_cannot_be_done_is_refused_in_words(given: Any, shadow: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        checked(given, shadow)


@pytest.mark.parametrize(
    "options",
    [
        {"share": -0.1},
        {"share": math.nan},
        {"relative": -1},
        {"absolute": math.inf},
        {"timeout_s": 0},
        {"timeout_s": "1"},
        {"max_running": 0},
        {"max_waiting": -1},
        {"max_waiting": 1.5},
    ],
)
def test_a_shadow_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    (name,) = options

    with pytest.raises(ConfigurationError, match=f"`{name}` must"):
        Shadow("v2", **options)


def test_a_shadow_may_be_written_in_three_ways() -> None:
    assert Shadow.of("v2") == Shadow("v2")
    assert Shadow.of(("v2", 0.1)) == Shadow("v2", share=0.1)
    assert Shadow.of(Shadow("v2", relative=0.5)) == Shadow("v2", relative=0.5)
    assert Shadow.of(None) is None
