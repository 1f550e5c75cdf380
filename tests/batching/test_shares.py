"""Laws of what tenants have, and of what is kept for the others."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mlserve.batching.shares import Shares

NAMES = st.sampled_from([None, "a", "b", "c"])
IN_FLIGHT = st.lists(NAMES, max_size=60)


def shares_of(tenants: list[str | None]) -> Shares:
    shares = Shares()
    for tenant in tenants:
        shares.enter(tenant)
    return shares


def kept(shares: Shares, tenants: list[str | None]) -> Callable[[str | None], int]:
    return lambda who: shares.kept_from(who, capacity=64, n_total=len(tenants))


@given(IN_FLIGHT, NAMES, st.integers(0, 100))
def test_there_are_never_more_ahead_than_without_tenants_and_rarely_none(
    tenants: list[str | None], tenant: str | None, n_ahead: int
) -> None:
    n = shares_of(tenants).turns_ahead(tenant, n_ahead=n_ahead, n_total=len(tenants))

    assert min(n_ahead, 1 if tenants else n_ahead) <= n <= n_ahead


@given(st.lists(st.none(), max_size=60), st.integers(0, 100))
def test_without_tenants_all_are_ahead_and_no_place_is_kept(
    tenants: list[str | None], n_ahead: int
) -> None:
    shares = shares_of(tenants)

    assert shares.turns_ahead(None, n_ahead=n_ahead, n_total=len(tenants)) == n_ahead
    assert kept(shares, tenants)(None) == 0


@given(IN_FLIGHT)
def test_a_newcomer_may_take_every_place(tenants: list[str | None]) -> None:
    assert kept(shares_of(tenants), tenants)("new") == 0


@given(IN_FLIGHT, NAMES)
def test_who_has_most_leaves_places_to_the_others_as_soon_as_there_are_tenants(
    tenants: list[str | None], tenant: str | None
) -> None:
    most = max(tenants, key=tenants.count, default=None)

    is_kept = kept(shares_of(tenants), tenants)(most) > 0

    assert is_kept is any(name is not None for name in tenants)


@given(IN_FLIGHT)
def test_once_all_have_left_it_is_as_if_nobody_had_come(tenants: list[str | None]) -> None:
    shares = shares_of(tenants)

    for tenant in tenants:
        shares.leave(tenant)

    assert repr(shares) == "<Shares of 0 tenants>"
    assert shares.turns_ahead("a", n_ahead=7, n_total=9) == 7


def test_each_of_the_others_has_one_turn_before_the_first_request_of_a_tenant() -> None:
    shares = shares_of([*["heavy"] * 50, "light", "other"])

    assert shares.turns_ahead("new", n_ahead=52, n_total=52) == 3
    assert shares.turns_ahead("heavy", n_ahead=52, n_total=52) == 52
