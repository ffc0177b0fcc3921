"""The frame of a chart: axes, grid and legend, as inline SVG that follows the page's colours."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 34
LINE = 15
"""Height of a line of the legend, which is above the curves."""
TICKS = 5
COLOURS = 4
"""That the page has; more lines start over."""
Tick = tuple[float, str]


class Frame:
    """A chart without its curves.

    Args:
        title: read aloud in its place.
        x_label: name of the horizontal axis.
        x_range: its ends.
        y_range: ends of the vertical axis.
        x_ticks: places and texts.
        y_ticks: places and texts.
        labels: of the lines; empty ones are not in the legend.
    """

    def __init__(
        self,
        title: str,
        x_label: str,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_ticks: Sequence[Tick],
        y_ticks: Sequence[Tick],
        labels: Sequence[str],
    ) -> None:
        self.title, self.x_label, self.x_range, self.y_range = title, x_label, x_range, y_range
        self.x_ticks, self.y_ticks = x_ticks, y_ticks
        self.labelled = [(place % COLOURS, label) for place, label in enumerate(labels) if label]
        self.top = TOP + LINE * len(self.labelled)

    def x(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Horizontal places."""
        first, last = self.x_range
        return LEFT + (values - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Vertical places; what is outside lies on the edge."""
        low, high = self.y_range
        place = HEIGHT - BOTTOM - (values - low) / (high - low) * (HEIGHT - self.top - BOTTOM)
        return np.clip(place, self.top, HEIGHT - BOTTOM)

    def svg(self, curves: Sequence[str]) -> str:
        """The whole chart.

        Args:
            curves: SVG elements, drawn over the grid.
        """
        parts = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">'
        ]
        for value, text in self.y_ticks:
            height = float(self.y(np.array(value)))
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
                f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{escape(text)}</text>'
            )
        for value, text in self.x_ticks:
            place = float(self.x(np.array(value)))
            parts.append(
                f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(text)}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(self.x_label)}</text>'
        )
        parts += curves
        for place, (number, label) in enumerate(self.labelled):
            height = TOP + LINE * place
            parts.append(
                f'<line class="mean series{number}" x1="{LEFT + 8}" x2="{LEFT + 24}" '
                f'y1="{height}" y2="{height}"/>'
            )
            parts.append(f'<text x="{LEFT + 29}" y="{height + 4}">{escape(label)}</text>')
        return "".join([*parts, "</svg>"])


def path_of(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Points as the `d` of a path."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def range_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Smallest and largest, apart."""
    low, high = float(values.min()), float(values.max())
    if high > low:
        return low, high
    reach = abs(low) / 10 or 1.0
    return low - reach, high + reach


def linear_ticks(low: float, high: float) -> list[Tick]:
    """Round numbers in a range, with their texts."""
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    size *= next((factor for factor in (1, 2, 5) if factor * size >= rough), 10)
    first = math.ceil(low / size - 1e-9)
    numbers = (number * size for number in range(first, math.floor(high / size + 1e-9) + 1))
    return [(number, short_number(number)) for number in numbers]


def log_ticks(low: float, high: float) -> list[Tick]:
    """Places, as logarithms, and texts: powers of ten, or round numbers where there are too few of these."""
    powers = range(math.ceil(low / math.log(10)), math.floor(high / math.log(10)) + 1)
    if len(powers) < 2:
        values = linear_ticks(math.exp(low), math.exp(high))
        return [(math.log(value), text) for value, text in values if value > 0]
    skip = math.ceil(len(powers) / TICKS)
    return [(power * math.log(10), f"1e{power}") for power in powers if power % skip == 0]


def short_number(value: float) -> str:
    """At most four digits, thousands as k."""
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{float(f'{value:.4g}'):g}"
    return text.replace("-", "−")
