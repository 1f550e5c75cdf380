"""
Who has how many of the requests in flight, for the admission of tenants that take turns. Pure.

Those of nobody are not counted one by one: they are what is left of the total.
"""

from math import ceil

__all__ = ["Shares", "most_kept"]

_KEPT = 8  # one place in so many


class Shares:
    """
    What each tenant has in flight.

    Example:
        >>> shares = Shares()
        >>> for _ in range(90):
        ...     shares.enter("heavy")
        >>> shares.turns_ahead("light", n_ahead=80, n_total=90)
        1
        >>> shares.kept_from("heavy", capacity=64, n_total=90)
        8
        >>> shares.kept_from("light", capacity=64, n_total=90)
        0
    """

    def __init__(self) -> None:
        self._held: dict[str | None, int] = {}

    def enter(self, tenant: str | None) -> None:
        """Note a request that is accepted."""
        if tenant is not None:
            self._held[tenant] = self._held.get(tenant, 0) + 1

    def leave(self, tenant: str | None) -> None:
        """Note that a request which had entered has its answer."""
        if tenant is not None:
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]

    def turns_ahead(self, tenant: str | None, *, n_ahead: int, n_total: int) -> int:
        """
        Say how many requests will be served before the next one of a tenant.

        Args:
            tenant: Whose it will be.
            n_ahead: How many would be if there were no tenants.
            n_total: How many requests are in flight.
        """
        if not self._held or n_ahead <= 0:
            return n_ahead
        held = self._all(n_total)
        mine = held.pop(tenant, 0)
        before = mine + sum(min(n, mine + 1) for n in held.values())
        # Those in flight wait or run, urgent or not: of those ahead the same share is assumed.
        return min(n_ahead, ceil(n_ahead * before / n_total))

    def kept_from(self, tenant: str | None, *, capacity: int, n_total: int) -> int:
        """
        Say how many of the last places a tenant may not take: they are kept for the others.

        An eighth, if it has more than it would have if all had as many and one more came.

        Args:
            tenant: Whose the next request is.
            capacity: How many places there are.
            n_total: How many requests are in flight.
        """
        if not self._held:
            return 0
        held = self._all(n_total)
        n_tenants = len(held) + (tenant not in held)
        has_more = held.get(tenant, 0) * (n_tenants + 1) > n_total
        return most_kept(capacity) if has_more else 0

    def _all(self, n_total: int) -> dict[str | None, int]:
        """Give what everybody has, with those of nobody."""
        n_nobodys = n_total - sum(self._held.values())
        return {**self._held, None: n_nobodys} if n_nobodys > 0 else dict(self._held)

    def __repr__(self) -> str:
        return f"<Shares of {len(self._held)} tenants>"


def most_kept(capacity: int) -> int:
    """Say how many of the last places may be kept from a tenant."""
    return capacity // _KEPT
