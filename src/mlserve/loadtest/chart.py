"""
Charts as SVG: lines over an axis, bars, and points; no more than the reports need. Pure.

Source:
    SVG 1.1 (W3C 2011). Colours that the colour-blind can tell apart: Okabe and Ito (2008).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "bars", "lines", "scatter"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 44, 56
_N_TICKS = 5
_LEAST = 1e-9  # of what a logarithmic axis shows


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart, or points that have one name."""

    name: str
    points: Sequence[tuple[float, float]]


def lines(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """
    Draw lines.

    Args:
        title: What stands above.
        x_name: What stands below the horizontal axis.
        y_name: What stands beside the vertical axis, which begins at 0.
        series: The lines, in the order of the legend.
    """
    points = [point for line in series for point in line.points]
    xs = [x for x, _ in points] or [0.0]
    x_low = min(xs)
    x_high = max(*xs, x_low + 1e-9)
    y_high = _nice(max([y for _, y in points] or [1.0]))

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        return f"{across:.1f},{_y(y, y_high):.1f}"

    parts = [*_frame(title, y_name, y_high), _label(x_name, _WIDTH / 2, _HEIGHT - 10)]
    for number in range(_N_TICKS + 1):
        x = x_low + (x_high - x_low) * number / _N_TICKS
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * number / _N_TICKS
        parts.append(_label(_number(x), across, _HEIGHT - _BOTTOM + 18))
    for number, line in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{at.split(",")[0]}" cy="{at.split(",")[1]}" r="3" fill="{colour}"/>'
            for at in path.split()
            if len(line.points) <= 40
        ]
        parts += _legend(number, line.name, colour)
    return _whole(parts)


def bars(
    title: str,
    y_name: str,
    values: Sequence[tuple[str, float]],
    *,
    x_name: str = "",
    is_one_colour: bool = False,
) -> str:
    """
    Draw bars.

    Args:
        title: What stands above.
        y_name: What stands beside the vertical axis, which begins at 0.
        values: The bars and what stands below each, each word in a line of its own.
        x_name: What stands below all of them.
        is_one_colour: Whether they are of one kind, as those of a histogram.
    """
    y_high = _nice(max([value for _, value in values] or [1.0]))
    parts = _frame(title, y_name, y_high)
    if x_name:
        parts.append(_label(x_name, _WIDTH / 2, _HEIGHT - 10))
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    for number, (name, value) in enumerate(values):
        left, top = _LEFT + (number + 0.15) * room, _y(value, y_high)
        colour = COLOURS[0 if is_one_colour else number % len(COLOURS)]
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{room * 0.7:.1f}"'
            f' height="{_HEIGHT - _BOTTOM - top:.1f}" fill="{colour}"/>'
        )
        middle = left + room * 0.35
        parts.append(_label(_number(value), middle, top - 5))
        for row, word in enumerate(name.split()):
            parts.append(_label(word, middle, _HEIGHT - _BOTTOM + 18 + 13 * row))
    return _whole(parts)


def scatter(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """
    Draw points on two logarithmic axes of the same range, and the line where both are equal.

    Args:
        title: What stands above.
        x_name: What stands below the horizontal axis.
        y_name: What stands beside the vertical axis.
        series: The points, in the order of the legend; those below 1e-9 are left out.
    """
    kept = [[(x, y) for x, y in each.points if min(x, y) >= _LEAST] for each in series]
    values = [value for points in kept for point in points for value in point] or [1.0]
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(value: float) -> float:
        return (math.log10(value) - low) / (high - low)

    parts = [*_heading(title, y_name), _label(x_name, _WIDTH / 2, _HEIGHT - 10)]
    for value in _powers(low, high):
        x, y = _LEFT + place(value) * across, _HEIGHT - _BOTTOM - place(value) * up
        parts += [
            _rule(_LEFT, _WIDTH - _RIGHT, y, y),
            _rule(x, x, _TOP, _HEIGHT - _BOTTOM),
            _label(_number(value), x, _HEIGHT - _BOTTOM + 18),
            _mark(_number(value), y),
        ]
    equal = (_LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, _TOP)
    parts.append(_rule(*equal, colour="#666"))
    for number, points in enumerate(kept):
        colour = COLOURS[number % len(COLOURS)]
        parts += [
            f'<circle cx="{_LEFT + place(x) * across:.1f}"'
            f' cy="{_HEIGHT - _BOTTOM - place(y) * up:.1f}" r="3" fill="{colour}"'
            ' fill-opacity="0.5"/>'
            for x, y in points
        ]
        parts += _legend(number, series[number].name, colour)
    return _whole(parts)


def _powers(low: int, high: int) -> list[float]:
    """Give powers of ten in a range, and what is between them where they are few."""
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    powers = range(low, high, math.ceil((high - low) / (2 * _N_TICKS)))
    return [step * 10.0**power for power in powers for step in steps] + [10.0**high]


def _frame(title: str, y_name: str, y_high: float) -> list[str]:
    parts = _heading(title, y_name)
    for number in range(_N_TICKS + 1):
        value = y_high * number / _N_TICKS
        y = _y(value, y_high)
        parts += [_rule(_LEFT, _WIDTH - _RIGHT, y, y), _mark(_number(value), y)]
    return parts


def _heading(title: str, y_name: str) -> list[str]:
    return [
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="36" font-size="11">{escape(y_name)}</text>',
    ]


def _rule(x1: float, x2: float, y1: float, y2: float, *, colour: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _mark(text: str, y: float) -> str:
    return (
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">'
        f"{escape(text)}</text>"
    )


def _legend(number: int, name: str, colour: str) -> list[str]:
    x = _LEFT + 200 + 130 * (number % 4)
    y = 20 + 14 * (number // 4)
    return [
        f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{colour}"/>',
        f'<text x="{x + 14}" y="{y + 1}" font-size="11">{escape(name)}</text>',
    ]


def _label(text: str, x: float, y: float) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="middle">{escape(text)}</text>'
    )


def _whole(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' font-family="sans-serif"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _y(value: float, y_high: float) -> float:
    return _HEIGHT - _BOTTOM - value / y_high * (_HEIGHT - _TOP - _BOTTOM)


def _nice(value: float) -> float:
    """Give the next round number that is not less."""
    if not 1e-300 < value < math.inf:  # below, a power of ten is no longer exact
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999999)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
