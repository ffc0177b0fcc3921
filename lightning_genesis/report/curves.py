"""Curves over seeds, as inline SVG that needs no script and follows the page's colours."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from lightning_genesis.report.runs import Curve

BINS = 200
"""Points of a curve: each is the mean of what was logged in this part of the training."""
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 34
LINE = 15
"""Height of a line of the legend, which is above the curves."""
TICKS = 5
COLOURS = 4
"""That the page has; more lines start over."""
OUTLIERS = 2.0
"""Percent of a curve's points that may lie outside, above and below: the first steps would hide the rest."""


@dataclass(frozen=True)
class Chart:
    """What one picture shows."""

    title: str
    pattern: str
    """Regular expression for the names that were logged; the group in it, if any, labels the line."""
    log: bool = False
    """Logarithmic; values must be positive."""


CHARTS = (
    Chart("Training loss (nats per image)", r"train/loss"),
    Chart("β of the objective", r"geco/(.+)/beta", log=True),
    Chart("ARI-FG, validation", r"val/(ari_fg|ari_fg_attention)"),
)
LABELS = {"ari_fg": "decoded masks", "ari_fg_attention": "attention masks"}


@dataclass(frozen=True)
class Band:
    """A curve over seeds: arrays `[N]`; NaN where no seed has a value."""

    label: str
    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    """Of the seeds, with n - 1; 0 where only one has a value."""
    seeds: list[NDArray[np.float64]]


def average(label: str, curves: Sequence[Curve], log: bool = False, bins: int = BINS) -> Band:
    """Averages curves of several seeds over parts of the training.

    Args:
        label: of the line.
        curves: steps and values `[N, 2]` of each seed.
        log: average logarithms; values that are not positive are left out.
        bins: parts; fewer where fewer steps were logged.
    """
    curves = [curve[curve[:, 1] > 0] if log else curve for curve in curves]
    curves = [curve for curve in curves if len(curve)]
    every = np.unique(np.concatenate([curve[:, 0] for curve in curves] or [np.empty(0)]))
    # up to `bins` steps are shown as they are
    edges = every if len(every) <= bins else np.linspace(every[0], every[-1], bins + 1)[:-1]
    seeds = []
    for curve in curves:
        place = np.searchsorted(edges, curve[:, 0], side="right") - 1
        values = np.log(curve[:, 1]) if log else curve[:, 1]
        count = np.bincount(place, minlength=len(edges))
        total = np.bincount(place, values, minlength=len(edges))
        seen = count > 0
        mean = total[seen] / count[seen]
        # between two logged values the line is straight; beyond them there is none
        seeds.append(np.interp(edges, edges[seen], mean, left=np.nan, right=np.nan))
    table = np.array(seeds).reshape(len(seeds), len(edges))
    present = ~np.isnan(table)
    number = present.sum(axis=0)
    mean = np.divide(np.nansum(table, axis=0), number, out=np.full(len(edges), np.nan), where=number > 0)
    squares = np.where(present, (table - mean) ** 2, 0.0).sum(axis=0)
    std = np.sqrt(np.divide(squares, number - 1, out=np.zeros(len(edges)), where=number > 1))
    return Band(label, edges, mean, std, seeds)


def draw_charts(histories: Sequence[Mapping[str, Curve]]) -> list[tuple[str, str]]:
    """Title and SVG of every chart for which something was logged.

    Args:
        histories: logged curves by name, one mapping per seed.
    """
    drawn = []
    for chart in CHARTS:
        names = dict.fromkeys(name for history in histories for name in history)
        bands = []
        for name in names:
            match = re.fullmatch(chart.pattern, name)
            if match:
                label = match[1] if match.lastindex else ""
                curves = [history[name] for history in histories if name in history]
                bands.append(average(LABELS.get(label, label.replace("_", " ")), curves, chart.log))
        bands = [band for band in bands if np.isfinite(band.mean).any()]
        if bands:
            drawn.append((chart.title, draw(chart.title, bands, chart.log)))
    return drawn


# ---------------------------------------------------------------- SVG


def draw(title: str, bands: Sequence[Band], log: bool = False) -> str:
    """Lines with a band of one standard deviation, and faint lines of the seeds, as an SVG element.

    Args:
        title: read aloud in its place.
        bands: one per line; logarithms where `log`.
        log: the values are logarithms, and the axis shows what they are of.
    """
    first, last = _range(np.concatenate([band.steps for band in bands]))
    low, high = _limits(bands)
    labelled = [(place % COLOURS, band.label) for place, band in enumerate(bands) if band.label]
    top = TOP + LINE * len(labelled)

    def x(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return LEFT + (steps - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(values: NDArray[np.float64]) -> NDArray[np.float64]:
        place = HEIGHT - BOTTOM - (values - low) / (high - low) * (HEIGHT - top - BOTTOM)
        return np.clip(place, top, HEIGHT - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    ticks = _log_ticks(low, high) if log else [(value, _short(value)) for value in _ticks(low, high)]
    for value, text in ticks:
        height = float(y(np.array(value)))
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{text}</text>')
    for value in _ticks(first, last):
        place = float(x(np.array(value)))
        parts.append(
            f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_short(value)}</text>'
        )
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    for place, band in enumerate(bands):
        number = place % COLOURS
        seen = np.isfinite(band.mean)
        steps, mean, std = band.steps[seen], band.mean[seen], band.std[seen]
        if std.any():
            outline = np.concatenate([y(mean + std), y(mean - std)[::-1]])
            path = _path(np.concatenate([x(steps), x(steps)[::-1]]), outline)
            parts.append(f'<path class="band series{number}" d="{path}Z"/>')
            for seed in band.seeds:
                here = np.isfinite(seed)
                path = _path(x(band.steps[here]), y(seed[here]))
                parts.append(f'<path class="seed series{number}" d="{path}"/>')
        if len(steps) == 1:
            parts.append(
                f'<circle class="dot series{number}" cx="{x(steps)[0]:.1f}" cy="{y(mean)[0]:.1f}" r="3"/>'
            )
        parts.append(f'<path class="mean series{number}" d="{_path(x(steps), y(mean))}"/>')
    for place, (number, label) in enumerate(labelled):
        height = TOP + LINE * place
        parts.append(
            f'<line class="mean series{number}" x1="{LEFT + 8}" x2="{LEFT + 24}" '
            f'y1="{height}" y2="{height}"/>'
        )
        parts.append(f'<text x="{LEFT + 29}" y="{height + 4}">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])


def _path(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Smallest and largest, apart."""
    low, high = float(values.min()), float(values.max())
    if high > low:
        return low, high
    reach = abs(low) / 10 or 1.0
    return low - reach, high + reach


def _limits(bands: Sequence[Band]) -> tuple[float, float]:
    """Of the axis: everything but outliers, and a little room."""
    values = np.concatenate([part for band in bands for part in (band.mean - band.std, band.mean + band.std)])
    low, high = np.nanpercentile(values, [OUTLIERS, 100 - OUTLIERS])
    low, high = _range(np.array([low, high]))
    room = (high - low) / 20
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers in a range."""
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    size *= next((factor for factor in (1, 2, 5) if factor * size >= rough), 10)
    first = math.ceil(low / size - 1e-9)
    return [number * size for number in range(first, math.floor(high / size + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Places, as logarithms, and texts: powers of ten, or round numbers where there are too few of these."""
    powers = range(math.ceil(low / math.log(10)), math.floor(high / math.log(10)) + 1)
    if len(powers) < 2:
        return [
            (math.log(value), _short(value)) for value in _ticks(math.exp(low), math.exp(high)) if value > 0
        ]
    skip = math.ceil(len(powers) / TICKS)
    return [(power * math.log(10), f"1e{power}") for power in powers if power % skip == 0]


def _short(value: float) -> str:
    """At most four digits, thousands as k."""
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{float(f'{value:.4g}'):g}"
    return text.replace("-", "−")
