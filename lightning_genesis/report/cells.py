"""Numbers of several seeds beside published ones, and how they are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lightning_genesis.report.names import Metric
from lightning_genesis.report.published import Published

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Numbers of several seeds."""

    count: int
    mean: float
    std: float | None
    """Of the sample, with n - 1; None for one seed."""
    interval: tuple[float, float] | None
    """Of the mean, by Student's t at `CONFIDENCE`; None for one seed."""


def summarise(values: Sequence[float], metric: Metric | None = None) -> Summary:
    """Mean, standard deviation and confidence interval of one value per seed.

    Args:
        values: one per seed, in the unit that is shown.
        metric: what they are of; the interval ends where its range does.
    """
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Summary(count, mean, None, None)
    std = float(np.std(values, ddof=1))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / math.sqrt(count)
    least, most = metric.range if metric else (-math.inf, math.inf)
    return Summary(count, mean, std, (max(least, mean - reach), min(most, mean + reach)))


@dataclass(frozen=True)
class Comparison:
    """A mean beside a published one."""

    published: Published
    difference: float
    """Ours less theirs."""

    @property
    def deviations(self) -> float | None:
        """The difference in published standard deviations; None where none is printed, or 0."""
        std = self.published.std
        return self.difference / std if std else None


@dataclass(frozen=True)
class Cell:
    """A metric of an experiment."""

    summary: Summary
    """In the unit that is shown."""
    runs: tuple[str, ...]
    """Names of the runs behind it."""
    comparisons: tuple[Comparison, ...]
    values: tuple[float, ...] = ()
    """One per run."""
    density: str | None = None
    """Of an ELBO and the like: likelihood and σ, without which the number says nothing."""


def show_number(value: float, decimals: int | None, signed: bool = False) -> str:
    """A number as text, with a real minus sign."""
    sign = "+" if signed else ""
    text = f"{value:{sign}.4g}" if decimals is None else f"{value:{sign}.{decimals}f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "−")


def show_summary(summary: Summary, metric: Metric) -> str:
    """Mean ± standard deviation (number of seeds)."""
    std = "" if summary.std is None else f" ± {show_number(summary.std, metric.decimals)}"
    return f"{show_number(summary.mean, metric.decimals)}{std} ({summary.count})"


def show_interval(summary: Summary, metric: Metric) -> str | None:
    """The confidence interval, None for one seed."""
    if summary.interval is None:
        return None
    low, high = (show_number(bound, metric.decimals) for bound in summary.interval)
    return f"{CONFIDENCE:.0%} {low} to {high}".replace("%", " %")


def show_comparison(comparison: Comparison, metric: Metric) -> str:
    """The published value, the difference, in standard deviations if one is printed, and where it is from."""
    published = comparison.published
    if comparison.deviations is None:
        difference = show_number(comparison.difference, metric.decimals, signed=True)
    else:
        difference = f"{show_number(comparison.deviations, 1, signed=True)} σ"
    value = published.text.replace("-", "−")
    return f"{value}, {difference} ({published.paper}, {published.where})"


def headline_lines(cell: Cell | None, metric: Metric) -> list[str]:
    """What a cell of the headline table says: mean, deviation and seeds, then what the papers print."""
    if cell is None:
        return []
    printed: dict[str, str] = {}
    for comparison in cell.comparisons:  # of several tables of a paper the first
        printed.setdefault(comparison.published.paper, comparison.published.text.replace("-", "−"))
    several = len(printed) > 1
    papers = (f"{paper if several else 'paper'}: {text}" for paper, text in printed.items())
    return [show_summary(cell.summary, metric), *papers]


def cell_lines(cell: Cell | None, metric: Metric) -> list[str]:
    """All that a cell says, a line each."""
    if cell is None:
        return []
    interval = show_interval(cell.summary, metric)
    compared = [show_comparison(comparison, metric) for comparison in cell.comparisons]
    return [show_summary(cell.summary, metric), *([interval] if interval else []), *compared]
