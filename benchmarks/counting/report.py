"""The counts as tables in Markdown."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.counting.measure import Cost, Waiting

__all__ = ["cost_table", "module_table", "spread_table", "waiting_table"]

_OURS = "mlserve"
_SMALL = 0.01
_PROFILED = (
    "mlserve, alone",
    "mlserve, 32 at once",
    "FastAPI, 32 at once",
    "mlserve, an event",
    "FastAPI events, an event",
)


def cost_table(costs: dict[str, Cost]) -> str:
    """Say what a request or an event costs in all."""
    head = ("what", "instructions", "of mlserve", "elsewhere", "calls", "garbage", "kept blocks")
    return _table(
        head,
        (
            (
                name,
                f"{cost.total:,.0f}",
                f"{cost.own:,.0f}",
                f"{cost.total - cost.own:,.0f}",
                f"{cost.calls:,.0f}",
                f"{cost.garbage:,.0f}",
                f"{abs(cost.kept_blocks):,.0f}",
            )
            for name, cost in costs.items()
        ),
    )


def module_table(costs: dict[str, Cost]) -> str:
    """Say where the instructions are: in which modules of mlserve, and in which packages."""
    profiles = {name: _profile(costs[name]) for name in _PROFILED if name in costs}
    least = {name: _SMALL * costs[name].total for name in profiles}
    places = {place for profile in profiles.values() for place in profile}
    shown = {p for p in places if any(profiles[n][p] >= least[n] for n in profiles)}
    first = next(iter(profiles.values()))
    rows = [
        (place, *(_amount(profile[place]) for profile in profiles.values()))
        for place in sorted(shown, key=lambda place: (-first[place], place))
    ]
    rest = [sum(n for p, n in profile.items() if p not in shown) for profile in profiles.values()]
    rows.append(("all others", *(_amount(n) for n in rest)))
    return _table(("instructions", *profiles), rows)


def waiting_table(waiting: dict[str, Waiting]) -> str:
    """Say what a request takes while it waits."""
    return _table(
        ("bytes for each request that waits", "of mlserve", "in all", "payload"),
        ((name, *(f"{size:,.0f}" for size in sizes)) for name, sizes in waiting.items()),
    )


def spread_table(runs: Sequence[dict[str, Cost]]) -> str:
    """Say how far several runs differ."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name in runs[0]:
            totals = [run[name].total for run in runs]
            low, high = min(totals), max(totals)
            yield name, *(f"{total:,.1f}" for total in totals), f"{(high - low) / low:.2%}"

    numbers = (f"run {number + 1}" for number in range(len(runs)))
    return _table(("instructions", *numbers, "spread"), rows())


def _profile(cost: Cost) -> Counter[str]:
    """Sum the instructions up by module of mlserve, and by package elsewhere."""
    profile: Counter[str] = Counter()
    for module, n in cost.instructions.items():
        package, _, _ = module.partition(".")
        profile[f"`{module}`" if package == _OURS else package] += n  # type: ignore[assignment]
    return profile


def _amount(n: float) -> str:
    return f"{n:,.0f}" if n >= 0.5 else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
