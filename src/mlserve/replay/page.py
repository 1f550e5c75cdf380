"""The report of a replay as one HTML file that needs nothing from elsewhere. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from mlserve.loadtest.chart import Series, bars, scatter
from mlserve.replay.comparing import Outcome
from mlserve.replay.report import Latency, Report

__all__ = ["page"]

_MOST_POINTS = 2000
_LEAST_POWER, _MOST_POWER = -10, 1

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #f6f7f9; margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; } .quiet { color: #59636e; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; padding: 0; }
.tiles li { list-style: none; flex: 1 1 7rem; background: #fff; border: 1px solid #d9dee3;
  border-radius: .5rem; padding: .6rem .9rem; }
.tiles b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tiles .bad { border-left: 4px solid #D55E00; } .tiles .good { border-left: 4px solid #009E73; }
.scroll { overflow-x: auto; background: #fff; border: 1px solid #d9dee3; border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .4rem .8rem; border-top: 1px solid #e6e9ec; }
thead th { border-top: 0; font-weight: 600; background: #f0f2f4; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; border: 1px solid #d9dee3; border-radius: .5rem; }
.scroll + svg { margin-top: .75rem; }
"""


def page(report: Report) -> str:
    """Write a report as a page."""
    tolerance = report.tolerance
    allowed = f"{tolerance.relative:g} of the larger one or by {tolerance.absolute:g}"
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="quiet">Numbers may differ by {allowed}.</p>',
        *(f'<p class="quiet">{escape(note)}</p>' for note in report.notes),
        _tiles(report),
        *_what_differs(report),
        *_latencies(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _tiles(report: Report) -> str:
    tiles = [
        ("requests", f"{report.n_requests:,}", ""),
        ("the same", f"{report.n_same:,}", "good"),
        ("different", f"{report.n_different:,}", "bad" if report.n_different else ""),
        ("failed", f"{report.n_failed:,}", "bad" if report.n_failed else ""),
        ("differ or fail", f"{report.share:.2%}", "bad" if report.share else "good"),
    ]
    cells = (f'<li class="{kind}"><b>{text}</b>{name}</li>' for name, text, kind in tiles)
    left_out = "; ".join(f"{n:,} {escape(why)}" for why, n in report.left_out.items())
    return f'<ul class="tiles">{"".join(cells)}</ul>' + (
        f'<p class="quiet">Left out: {left_out}.</p>' if left_out else ""
    )


def _what_differs(report: Report) -> Iterable[str]:
    if report.changes:
        yield "<h2>Other statuses</h2>"
        yield _table(
            ("recorded → now", "requests"),
            [(_code(change), f"{n:,}") for change, n in report.changes.items()],
            n_words=1,
        )
    if report.places:
        yield "<h2>Where answers differ</h2>"
        yield _table(
            ("place", "how", "requests", "largest difference", "relative"),
            [
                (
                    _code(place.pattern or "/"),
                    escape(", ".join(place.kinds)),
                    f"{place.n_requests:,}",
                    f"{place.absolute:.3g}",
                    f"{place.relative:.3g}",
                )
                for place in report.places
            ],
            n_words=2,
        )
    if named := report.named:
        yield "<h2>Requests that differ most</h2>"
        yield _table(
            ("request", "recorded → now", "places", "largest difference"),
            [
                (
                    _code(outcome.request_id),
                    _code(f"{outcome.was} → {outcome.now}"),
                    ", ".join(_code(gap.pattern or "/") for gap in outcome.gaps[:3]),
                    f"{max(gap.absolute for gap in outcome.gaps):.3g}" if outcome.gaps else "-",
                )
                for outcome in named
            ],
            n_words=3,
        )
    if any(outcome.absolute for outcome in report.outcomes):
        yield "<h2>How far numbers are apart</h2>"
        yield _distribution(report.outcomes)


def _latencies(report: Report) -> Iterable[str]:
    rows = [
        (name, *_latency_cells(latency))
        for name, latency in (("in total", report.total), ("in infer", report.infer))
        if latency is not None
    ]
    if not rows:
        return
    yield "<h2>How long answers took</h2>"
    yield (
        '<p class="quiet">The recorded times are those over HTTP, under the load that there was;'
        f" the new ones are without HTTP. {report.batches or ''}</p>"
    )
    heads = ("ms", "recorded median", "new median", "ratio", "recorded p95", "new p95")
    yield _table(heads, rows, n_words=1)
    yield _scatter(report.outcomes)


def _latency_cells(latency: Latency) -> tuple[str, ...]:
    return (
        f"{latency.old_median:,.2f}",
        f"{latency.new_median:,.2f}",
        "-" if latency.ratio is None else f"{latency.ratio:.2f}",
        f"{latency.old_p95:,.2f}",
        f"{latency.new_p95:,.2f}",
    )


def _distribution(outcomes: Sequence[Outcome]) -> str:
    """Draw how many answers have which largest difference, by powers of ten."""
    found = [outcome.absolute for outcome in outcomes if outcome.absolute is not None]
    counts = Counter(_power(value) for value in found)
    powers = [power for power in counts if power is not None]
    shown = range(min(powers), max(powers) + 1) if powers else range(0)
    values = [("none", float(counts[None]))]
    values += [(_power_name(power), float(counts[power])) for power in shown]
    return bars(
        "Largest absolute difference in each answer",
        "answers",
        values,
        x_name="from this power of ten to the next; none = all numbers are equal",
        is_one_colour=True,
    )


def _power(value: float) -> int | None:
    if value <= 0:
        return None
    return min(max(math.floor(math.log10(value)), _LEAST_POWER), _MOST_POWER)


def _power_name(power: int) -> str:
    mark = "≤" if power == _LEAST_POWER else "≥" if power == _MOST_POWER else ""
    return f"{mark}1e{power}"


def _scatter(outcomes: Sequence[Outcome]) -> str:
    """Draw the recorded times against the new ones."""
    good = [outcome for outcome in outcomes if outcome.was == outcome.now == "200"]
    step = math.ceil(len(good) / _MOST_POINTS)
    some = good[::step]
    series = [
        Series("in total", [(each.old_total_ms, each.new_total_ms) for each in some]),
        Series("in infer", [(each.old_infer_ms, each.new_infer_ms) for each in some]),
    ]
    title = "Times in ms" if step == 1 else f"Times in ms, every {step}th request"
    return scatter(title, "recorded", "new", series)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], n_words: int) -> str:
    """Make a table of cells that are HTML; the first `n_words` columns are words."""
    kinds = ["" if number < n_words else ' class="n"' for number in range(len(heads))]
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, heads, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}"
        "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
