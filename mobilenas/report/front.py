"""Accuracy against latency as a drawing: each group of networks with its spread, and the line of those that none beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mobilenas.report.drawing import picture, safe

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 760, 480, 70, 50, 46, 190
_COLOURS = ("#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#17202a", "#0e8a8a")


@dataclass(frozen=True)
class Point:
    """A group of networks: what it is called and of which kind, means, and how far each reaches."""

    name: str
    kind: str
    ms: float
    accuracy: float
    lowest_accuracy: float
    highest_accuracy: float


def front_of(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats, quickest first: none is as quick and more accurate, or as accurate and quicker."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ms, -point.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def draw_front(points: Sequence[Point], title: str) -> str:
    """SVG of ``points``, at least one, with their front."""
    kinds = list(dict.fromkeys(point.kind for point in points))
    colours = {kind: _COLOURS[index % len(_COLOURS)] for index, kind in enumerate(kinds)}
    xs = _Axis([point.ms for point in points], _LEFT, _WIDTH - _RIGHT)
    ys = _Axis([y for p in points for y in (p.lowest_accuracy, p.highest_accuracy)], _HEIGHT - _BOTTOM, _TOP)
    parts = _axes(xs, ys)
    steps = " ".join(f"{xs.place(p.ms):.1f},{ys.place(p.accuracy):.1f}" for p in front_of(points))
    parts.append(f'<polyline points="{steps}" fill="none" stroke="#555555" stroke-dasharray="5 4"/>')
    for point in points:
        x, y, colour = xs.place(point.ms), ys.place(point.accuracy), colours[point.kind]
        low, high = ys.place(point.lowest_accuracy), ys.place(point.highest_accuracy)
        parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{safe(point.name)}</title></circle>')
    for index, kind in enumerate(kinds):
        y = _TOP + 18 * index
        parts.append(f'<circle cx="{_WIDTH - _RIGHT + 24}" cy="{y}" r="5" fill="{colours[kind]}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 36, y + 4, kind, "start"))
    return picture(title, parts, _WIDTH, _HEIGHT)


class _Axis:
    """A linear scale from the numbers, and a tenth more on both sides, to places."""

    def __init__(self, numbers: Sequence[float], begin: float, end: float) -> None:
        low, high = min(numbers), max(numbers)
        margin = 0.1 * (high - low) or 0.1 * abs(high) or 0.1
        self.low, self.high, self.begin, self.end = low - margin, high + margin, begin, end

    def place(self, number: float) -> float:
        return self.begin + (number - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Four to ten round numbers."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (factor * step) <= 10)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def _axes(xs: _Axis, ys: _Axis) -> list[str]:
    bottom, left = _HEIGHT - _BOTTOM, _LEFT
    parts = [f'<path d="M{left} {_TOP}V{bottom}H{_WIDTH - _RIGHT}" fill="none" stroke="#555555"/>']
    for tick in xs.ticks():
        parts.append(f'<path d="M{xs.place(tick):.1f} {bottom}v5" stroke="#555555"/>')
        parts.append(_text(xs.place(tick), bottom + 18, f"{tick:.4g}", "middle"))
    for tick in ys.ticks():
        parts.append(f'<path d="M{left} {ys.place(tick):.1f}h-5" stroke="#555555"/>')
        parts.append(_text(left - 8, ys.place(tick) + 4, f"{100 * tick:.4g} %", "end"))
    parts.append(_text((left + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, "measured latency, ms", "middle"))
    return parts


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe(words)}</text>'
