"""What a table says about its rows together: the best of a column, failed seeds, differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats

from lightning_genesis.report.cells import CONFIDENCE, Cell, Summary, show_number
from lightning_genesis.report.names import metric_of
from lightning_genesis.report.tables import Column, Table

FAILED_BELOW = 0.6
"""ARI-FG below which a seed has failed: its masks follow no objects."""
FAILS_BY = "ari_fg"
MOST_ROWS = 4
"""Rows of which every pair is compared; of more, each with the first."""


def best_rows(table: Table, column: Column, decimals: int | None = None) -> set[str]:
    """Labels of the rows with the best mean of a column: several where they look the same as shown, not all.

    Empty where neither end is the best, or there is nothing to compare with. Densities of different σ or
    likelihood are no competitors.

    Args:
        table: its rows.
        column: of the table.
        decimals: that are shown; the metric's own if None.
    """
    metric = metric_of(column.metric)
    decimals = metric.decimals if decimals is None else decimals
    by_density: dict[str | None, dict[str, float]] = {}
    for row in table.rows:
        if (cell := row.cells.get(column)) is not None:
            by_density.setdefault(cell.density, {})[row.label] = cell.summary.mean
    found: set[str] = set()
    for means in by_density.values():
        if metric.best is None or len(means) < 2:
            continue
        best = show_number((max if metric.best == "high" else min)(means.values()), decimals)
        alike = {label for label, mean in means.items() if show_number(mean, decimals) == best}
        found |= alike if len(alike) < len(means) else set()
    return found


@dataclass(frozen=True)
class FailedSeeds:
    """How many seeds of an experiment found no objects."""

    label: str
    group: str
    """Dataset."""
    failed: int
    seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of the share, 95 %."""
        found = stats.binomtest(self.failed, self.seeds).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.label}, {self.group}: {self.failed} of {self.seeds} seeds failed "
            f"(95 % {100 * low:.0f} to {100 * high:.0f} %)"
        ).replace(" %", "\u00a0%")


def failed_seeds(table: Table) -> list[FailedSeeds]:
    """Of every row with ARI-FG of decoded masks, by dataset."""
    return [
        FailedSeeds(
            row.label, column.group, sum(value < FAILED_BELOW for value in cell.values), len(cell.values)
        )
        for column in table.columns
        if column.metric == FAILS_BY
        for row in table.rows
        if (cell := row.cells.get(column)) is not None
    ]


@dataclass(frozen=True)
class Difference:
    """Of the means of two experiments."""

    first: str
    second: str
    column: Column
    mean: float
    """The first less the second, in the unit that is shown."""
    interval: tuple[float, float] | None
    """By Welch's t at `CONFIDENCE`; None where one of them has one seed."""

    def __str__(self) -> str:
        metric = metric_of(self.column.metric)

        def show(value: float) -> str:
            return show_number(value, metric.decimals, signed=True)

        interval = ""
        if self.interval is not None:
            low, high = self.interval
            says = "" if low <= 0 <= high else ", without 0"
            interval = f" (95\u00a0% {show(low)} to {show(high)}{says})"
        place = f"{self.column.group}, {metric.label}"
        return f"{place}: {self.first} less {self.second}: {show(self.mean)}{interval}"


def differences(table: Table) -> list[Difference]:
    """Between the rows of a table that have a column in common, where one has several seeds."""
    found = []
    pairs: Sequence[tuple[int, int]] = list(combinations(range(len(table.rows)), 2))
    if len(table.rows) > MOST_ROWS:
        pairs = [(0, other) for other in range(1, len(table.rows))]
    for column in table.columns:
        for one, other in pairs:
            first, second = (table.rows[place].cells.get(column) for place in (one, other))
            if first is None or second is None or first.density != second.density:
                continue
            found.append(_difference(table, (one, other), column, first, second))
    return [difference for difference in found if difference.interval is not None]


def _difference(
    table: Table, places: tuple[int, int], column: Column, first: Cell, second: Cell
) -> Difference:
    one, other = (table.rows[place].label for place in places)
    interval = welch_interval(first.summary, second.summary)
    return Difference(one, other, column, first.summary.mean - second.summary.mean, interval)


def welch_interval(first: Summary, second: Summary) -> tuple[float, float] | None:
    """Confidence interval of the difference of two means whose variances may differ (Welch, 1947).

    None where one has a single value.
    """
    if first.std is None or second.std is None:
        return None
    parts = [(summary.std or 0.0) ** 2 / summary.count for summary in (first, second)]
    difference, variance = first.mean - second.mean, sum(parts)
    if variance == 0:
        return difference, difference
    freedom = variance**2 / sum(
        part**2 / (summary.count - 1) for part, summary in zip(parts, (first, second), strict=True)
    )
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return difference - reach, difference + reach
