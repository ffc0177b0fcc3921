"""Curves over seeds, as inline SVG that needs no script and follows the page's colours."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_genesis.report.axes import COLOURS, Frame, linear_ticks, log_ticks, path_of, range_of
from lightning_genesis.report.runs import Curve

BINS = 200
"""Points of a curve: each is the mean of what was logged in this part of the training."""
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
    steps = range_of(np.concatenate([band.steps for band in bands]))
    low, high = _limits(bands)
    frame = Frame(
        title,
        "step",
        steps,
        (low, high),
        linear_ticks(*steps),
        log_ticks(low, high) if log else linear_ticks(low, high),
        [band.label for band in bands],
    )
    return frame.svg([part for place, band in enumerate(bands) for part in _draw_band(frame, band, place)])


def _draw_band(frame: Frame, band: Band, place: int) -> list[str]:
    number = place % COLOURS
    seen = np.isfinite(band.mean)
    x, mean, std = frame.x(band.steps[seen]), band.mean[seen], band.std[seen]
    parts = []
    if std.any():
        outline = np.concatenate([frame.y(mean + std), frame.y(mean - std)[::-1]])
        path = path_of(np.concatenate([x, x[::-1]]), outline)
        parts.append(f'<path class="band series{number}" d="{path}Z"/>')
        for seed in band.seeds:
            here = np.isfinite(seed)
            path = path_of(frame.x(band.steps[here]), frame.y(seed[here]))
            parts.append(f'<path class="seed series{number}" d="{path}"/>')
    y = frame.y(mean)
    if len(x) == 1:
        parts.append(f'<circle class="dot series{number}" cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="3"/>')
    return [*parts, f'<path class="mean series{number}" d="{path_of(x, y)}"/>']


def _limits(bands: Sequence[Band]) -> tuple[float, float]:
    """Of the axis: everything but outliers, and a little room."""
    values = np.concatenate([part for band in bands for part in (band.mean - band.std, band.mean + band.std)])
    low, high = np.nanpercentile(values, [OUTLIERS, 100 - OUTLIERS])
    low, high = range_of(np.array([low, high]))
    room = (high - low) / 20
    return low - room, high + room
