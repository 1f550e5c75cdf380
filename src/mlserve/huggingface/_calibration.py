"""How many padded tokens a batch should have on this machine: measured, not guessed."""

import statistics
from collections.abc import Callable

__all__ = ["FACTORS", "measure_budget"]

FACTORS = (0.5, 1, 2, 4)
"""Which multiples of the default are tried."""
# What is less than this better may be chance, so that the default stays.
_CLEARLY_BETTER = 1.1


def measure_budget(
    run: Callable[[int], int], default: int, seconds: float, clock: Callable[[], float]
) -> int:
    """
    Find the budget of padded tokens with which the model reads most tokens per second.

    Each budget is tried once without being counted, then all in turns, so that what else the
    machine does meets all alike. No run is begun once the time is over.

    Args:
        run: Runs a batch of at most so many padded tokens, and says how many it had.
        default: The budget that stays unless another one is clearly better.
        seconds: How long that may take.
        clock: Gives monotonic seconds.

    Returns:
        The default, or one of its multiples in `FACTORS`.
    """
    budgets = [int(default * factor) for factor in FACTORS]
    rates: dict[int, list[float]] = {budget: [] for budget in budgets}
    ends_at = clock() + seconds
    for turn in range(1_000):
        for budget in budgets:
            started = clock()
            if started >= ends_at:
                return _best(rates, default)
            n_tokens = run(budget)
            took_s = clock() - started
            if turn > 0 and took_s > 0:
                rates[budget].append(n_tokens / took_s)
    return _best(rates, default)


def _best(rates: dict[int, list[float]], default: int) -> int:
    medians = {budget: statistics.median(found) for budget, found in rates.items() if found}
    if default not in medians:
        return default
    best = max(medians, key=lambda budget: medians[budget])
    return best if medians[best] >= _CLEARLY_BETTER * medians[default] else default
