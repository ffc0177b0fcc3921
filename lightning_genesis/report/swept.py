"""Charts of a sweep: a metric over the value that was swept, with intervals over seeds."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_genesis.report.axes import (
    COLOURS,
    Frame,
    Tick,
    linear_ticks,
    log_ticks,
    path_of,
    range_of,
    short_number,
)
from lightning_genesis.report.cells import Summary, summarise
from lightning_genesis.report.names import Metric, metric_of
from lightning_genesis.report.runs import Run
from lightning_genesis.runs.results import Result

CHARTED = ("ari_fg", "ari_fg_attention", "msc_fg", "elbo", "mse", "fid", "s_acc")
"""Metrics that get a chart, where the runs have them."""
DENSITIES = ("elbo",)
DENSITY_OPTIONS = ("std", "background_std", "likelihood")
"""Options that say which density an ELBO is of."""
WIDE = 30.0
"""Positive values of which the largest is so many times the smallest are on a logarithmic axis."""
LONGEST = 24
"""Characters of a value on an axis or in the legend."""
SHIFT = 5.0
"""Pixels between lines at one value, so that their intervals can be told apart."""

Where = tuple[str | None, str]
"""Protocol and split."""


@dataclass(frozen=True)
class SweepCharts:
    """What is shown of a sweep."""

    title: str
    charts: list[tuple[str, str]]
    """Title and SVG."""
    note: str
    """Which numbers they are."""


@dataclass(frozen=True)
class Line:
    """A metric over the values of one option."""

    label: str
    """The values of other options that were swept as well."""
    points: dict[str, list[float]]
    """By the option's value, in the unit that is shown, one number per seed."""


def draw_sweeps(runs: Sequence[Run]) -> list[SweepCharts]:
    """The charts of every sweep over values, for each swept option and metric one."""
    groups: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        if run.swept is not None and run.results:
            groups.setdefault((run.swept.sweep, tuple(run.swept.values)), []).append(run)
    found = []
    for (name, options), members in groups.items():
        where = _shared(members)
        charts = [chart for option in options for chart in _charts(option, options, members, where)]
        if charts:
            title = f"Sweep {name}" if name else "Sweep"
            shown = f"protocol {where[0]}" if where[0] else f"the whole {where[1]} split"
            found.append(SweepCharts(title, charts, f"Numbers of {shown}."))
    return found


def _shared(runs: Sequence[Run]) -> Where:
    """The protocol and split that most runs have numbers of, a protocol before a whole split."""
    counts = Counter(place for run in runs for place in {_place(result) for result in run.results})
    return max(counts, key=lambda place: (counts[place], place[0] is not None, str(place)))


def _place(result: Result) -> Where:
    return result.protocol, result.split


def _charts(
    option: str, options: Sequence[str], runs: Sequence[Run], where: Where
) -> Iterator[tuple[str, str]]:
    values = in_order({_value(run, option) for run in runs})
    if len(values) < 2:
        return
    for name in CHARTED:
        lines = _lines(name, option, options, runs, where)
        if lines:
            metric = metric_of(name)
            title = f"{metric.label} over {_short(option)}"
            if name in DENSITIES and {other.rpartition(".")[2] for other in options} & set(DENSITY_OPTIONS):
                title += " (the densities differ: no comparison)"
            yield title, draw_over_values(title, _short(option), values, lines, metric)


def _value(run: Run, option: str) -> str:
    assert run.swept is not None
    return run.swept.values[option]


def _lines(name: str, option: str, options: Sequence[str], runs: Sequence[Run], where: Where) -> list[Line]:
    others = [other for other in options if other != option and len({_value(run, other) for run in runs}) > 1]
    lines: dict[str, Line] = {}
    for run in runs:
        value = _number_of(run, name, where)
        if value is not None:
            label = ", ".join(f"{_short(other)} {_cut(_value(run, other))}" for other in others)
            line = lines.setdefault(label, Line(label, {}))
            line.points.setdefault(_value(run, option), []).append(value * metric_of(name).factor)
    return [lines[label] for label in in_order(lines)]


def _number_of(run: Run, name: str, where: Where) -> float | None:
    """A run's number: that of its latest weights."""
    results = [result for result in run.results if _place(result) == where]
    results.sort(key=lambda result: -1 if result.checkpoint is None else result.checkpoint.step)
    return results[-1].metrics.get(name) if results else None


def in_order(values: Iterable[str]) -> list[str]:
    """Values as on an axis: numbers by size, then text."""

    def key(value: str) -> tuple[bool, float, str]:
        number = _as_number(value)
        return number is None, 0.0 if number is None else number, value

    return sorted(values, key=key)


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _short(option: str) -> str:
    return option.replace("model.", "", 1).replace("init_args.", "")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


# ---------------------------------------------------------------- SVG


def draw_over_values(
    title: str, option: str, values: Sequence[str], lines: Sequence[Line], metric: Metric
) -> str:
    """Means with their confidence intervals over the seeds, and a dot for every seed, as an SVG element.

    Args:
        title: read aloud in its place.
        option: name of the horizontal axis.
        values: on that axis, in its order; numbers at their places, anything else in equal steps.
        lines: to draw.
        metric: what they are of.
    """
    places, x_range, x_ticks, x_label = _axis(option, values)
    summaries = [
        {value: summarise(numbers, metric) for value, numbers in line.points.items()} for line in lines
    ]
    shown = [number for line in lines for numbers in line.points.values() for number in numbers]
    ends = [end for line in summaries for summary in line.values() for end in summary.interval or ()]
    low, high = range_of(np.array([*shown, *ends]))
    room = (high - low) / 20
    y_range = (low - room, high + room)
    frame = Frame(
        title, x_label, x_range, y_range, x_ticks, linear_ticks(*y_range), [line.label for line in lines]
    )
    parts: list[str] = []
    for place, (line, summary) in enumerate(zip(lines, summaries, strict=True)):
        shift = (place - (len(lines) - 1) / 2) * SHIFT
        parts += _draw_line(frame, place % COLOURS, line, summary, places, shift)
    return frame.svg(parts)


def _draw_line(
    frame: Frame,
    number: int,
    line: Line,
    summaries: dict[str, Summary],
    places: dict[str, float],
    shift: float,
) -> list[str]:
    parts = []
    known = [value for value in places if value in summaries]
    x = frame.x(np.array([places[value] for value in known])) + shift
    y = frame.y(np.array([summaries[value].mean for value in known]))
    for value, across, up in zip(known, x, y, strict=True):
        interval = summaries[value].interval
        if interval is not None:
            low, high = frame.y(np.array(interval))
            parts.append(
                f'<path class="mean series{number}" d="M{across:.1f} {low:.1f}L{across:.1f} {high:.1f}"/>'
            )
        parts += [
            f'<circle class="one series{number}" cx="{across:.1f}" cy="{seed:.1f}" r="2.2"/>'
            for seed in frame.y(np.array(line.points[value]))
        ]
        parts.append(f'<circle class="dot series{number}" cx="{across:.1f}" cy="{up:.1f}" r="4"/>')
    return [f'<path class="seed series{number}" d="{path_of(x, y)}"/>', *parts]


def _axis(
    option: str, values: Sequence[str]
) -> tuple[dict[str, float], tuple[float, float], list[Tick], str]:
    """Places of the values, ends of the axis, its ticks and its name."""
    numbers = [_as_number(value) for value in values]
    if all(number is not None for number in numbers):
        known = np.array(numbers, dtype=np.float64)
        log = bool(known.min() > 0 and known.max() >= WIDE * known.min())
        where = np.log(known) if log else known
        low, high = range_of(where)
        room = (high - low) / 12
        ends = (low - room, high + room)
        few = len(values) <= 6
        marks = [(float(place), short_number(number)) for place, number in zip(where, known, strict=True)]
        ticks = marks if few else log_ticks(*ends) if log else linear_ticks(*ends)
        label = f"{option} (logarithmic)" if log else option
        return dict(zip(values, where.tolist(), strict=True)), ends, _apart(ticks, ends), label
    steps = {value: float(place) for place, value in enumerate(values)}
    ends = (-0.5, len(values) - 0.5)
    texts = [(place, _cut(value.rpartition(".")[2] or value)) for value, place in steps.items()]
    return steps, ends, texts, option


def _apart(ticks: Sequence[Tick], ends: tuple[float, float]) -> list[Tick]:
    """Ticks whose texts do not touch."""
    kept: list[Tick] = []
    for place, text in ticks:
        if not kept or (place - kept[-1][0]) / (ends[1] - ends[0]) > 0.022 * max(len(text), len(kept[-1][1])):
            kept.append((place, text))
    return kept
