"""From the results of runs to tables: models by datasets and metrics, a section for every protocol."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.deviations import in_words
from lightning_genesis.report.cells import Cell, Comparison, summarise
from lightning_genesis.report.names import (
    DENSITIES,
    FAMILIES,
    HEADLINE,
    IMPORTANCE,
    OTHERS,
    SAMPLES,
    STRUCTURE,
    base_name,
    dataset_label,
    family_of,
    metric_of,
    metric_order,
    row_label,
)
from lightning_genesis.report.published import find_published, is_published
from lightning_genesis.report.runs import Run
from lightning_genesis.runs.results import Result

NO_PROTOCOL = "none"
"""`--protocol` for numbers of the whole split."""


MAX_COLUMNS = 6
"""Of a table on one page."""
NO_DIFFERENCE = ("seed_everything", "masks", "headline")
"""Options that no metric depends on: the run's seed, and what old files have of the protocol's rules."""
MODEL = "model"
"""The option that has the model's values."""
FLEXIBLE, FLEXIBLE_SLOTS = "_flexible", "model.flexible_slots"
"""Ends the names of experiments with a flexible number of slots, and the option that makes it so."""
ONLY_FOR = {"fid": SAMPLES, "structure": STRUCTURE, "importance_samples": IMPORTANCE}
"""Options that only these metrics depend on."""
OWN_IMAGES = (*SAMPLES, *STRUCTURE)
"""Metrics over images of their own: how many the scores are of does not matter to them."""


@dataclass(frozen=True)
class Column:
    """A metric on a dataset."""

    dataset: str
    synthetic: bool
    metric: str

    @property
    def group(self) -> str:
        """Name of the dataset, marked if it is synthetic."""
        return dataset_label(self.dataset, self.synthetic)


@dataclass
class Row:
    """A model, with its variant."""

    label: str
    cells: dict[Column, Cell] = field(default_factory=dict)
    density: str = ""
    """Likelihood and σ, where rows differ in them; then the label has it too."""


@dataclass(frozen=True)
class Table:
    """Models by datasets and metrics."""

    title: str
    columns: list[Column]
    rows: list[Row]

    def fitting(self) -> "list[Table]":
        """The table, or one for each dataset if it is too wide for a page."""
        if len(self.columns) <= MAX_COLUMNS or len(self.groups()) == 1:
            return [self]
        tables = []
        for group, _ in self.groups():
            columns = [column for column in self.columns if column.group == group]
            rows = [
                Row(row.label, cells, row.density)
                for row in self.rows
                if (cells := {column: row.cells[column] for column in columns if column in row.cells})
            ]
            tables.append(Table(f"{self.title}: {group}", columns, rows))
        return tables

    def groups(self) -> list[tuple[str, int]]:
        """Datasets over the columns, and how many columns each has."""
        counts: dict[str, int] = {}
        for column in self.columns:
            counts[column.group] = counts.get(column.group, 0) + 1
        return list(counts.items())


@dataclass(frozen=True)
class Section:
    """Everything that was evaluated alike: by one protocol on one split."""

    protocol: str | None
    split: str
    tables: list[Table]
    remarks: list[str]
    headline: list[Table] = field(default_factory=list)
    """The paper's columns; `tables` have everything."""

    @property
    def title(self) -> str:
        """A heading."""
        return f"Protocol {self.protocol}" if self.protocol else f"Whole {self.split} split"


@dataclass(frozen=True)
class _Entry:
    """A result, and the run and experiment that it belongs to."""

    run: Run
    result: Result

    def options(self, metric: str) -> dict[str, str]:
        """What a metric depends on besides the weights, flat: names to values as JSON."""
        flat: dict[str, str] = {}

        def add(prefix: str, value: Any) -> None:
            if isinstance(value, dict) and value:
                for name, inner in value.items():
                    add(f"{prefix}.{name}" if prefix else str(name), inner)
            else:
                flat[prefix] = json.dumps(value, sort_keys=True)

        base = base_name(metric)
        count = {} if base in OWN_IMAGES else {"num_images": self.result.num_images}
        relevant = {
            name: value
            for name, value in self.result.options.items()
            if name not in NO_DIFFERENCE and base in ONLY_FOR.get(name, (base,))
        }
        # files from before the model's values were stored
        add("", count | {MODEL: "not stored"} | relevant)
        return flat

    @property
    def evaluated_as(self) -> str:
        """The experiment by whose published numbers this is measured.

        The number of slots is fixed or flexible in evaluation alone, and the papers have a row for either.
        """
        experiment = self.run.experiment
        values = self.result.options.get(MODEL)
        flexible = values.get("flexible_slots") if isinstance(values, dict) else None
        if flexible is None:
            return experiment
        return experiment.removesuffix(FLEXIBLE) + (FLEXIBLE if flexible else "")

    @property
    def density(self) -> str:
        """The likelihood and σ that an ELBO is of, as far as the result tells."""
        values = self.result.options.get(MODEL)
        values = values if isinstance(values, dict) else {}
        likelihood, first = values.get("likelihood"), values.get("background_std")
        std = self.result.options.get("std", values.get("std"))
        if likelihood is None:  # of models that know but one
            likelihood = "gaussian" if self.result.model == "VAE" else "mixture"
        parts = [str(likelihood)]
        parts.append("σ not stored" if std is None else f"σ {std}")
        parts += [f"first slot σ {first}"] if first is not None else []
        return ", ".join(parts)

    @property
    def age(self) -> tuple[int, str]:
        """Larger for later weights; of equal steps the last checkpoint, which the papers score."""
        checkpoint = self.result.checkpoint
        return (-1, "") if checkpoint is None else (checkpoint.step, checkpoint.path)


def make_sections(runs: Sequence[Run], protocol: str | None = None) -> tuple[list[Section], list[str]]:
    """Tables of all results. Numbers of different protocols, splits or options never share a cell.

    Args:
        runs: with or without results.
        protocol: only this one, `none` for numbers of the whole split; all if None.

    Returns:
        sections, and what is not as it should be, a line each.

    Raises:
        ConfigurationError: if no run has numbers of the protocol.
    """
    evaluated = [run for run in runs if run.results]
    evaluated, problems = _without_repeated_seeds(evaluated)
    found: dict[tuple[str | None, str], list[_Entry]] = defaultdict(list)
    for run in evaluated:
        for result in run.results:
            found[result.protocol, result.split].append(_Entry(run, result))
    if protocol is not None:
        wanted = None if protocol == NO_PROTOCOL else protocol
        names = sorted({name or NO_PROTOCOL for name, _ in found})
        found = {key: entries for key, entries in found.items() if key[0] == wanted}  # type: ignore[assignment]
        if not found:
            raise ConfigurationError(
                f"report: no run has numbers of protocol {protocol!r}; there are {', '.join(names) or 'none'}"
            )
    problems += _unshared(found, evaluated, protocol)
    sections = []
    for key in sorted(found, key=lambda key: (key[0] is None, *map(str, key))):
        section, more = _make_section(*key, found[key])
        sections.append(section)
        problems += more
    return sections, problems


def _paper_columns(protocol: str | None, result: Result) -> Sequence[str]:
    """Metrics that the protocol's tables show: as stored with the result, or as they are now."""
    if protocol is None:
        return HEADLINE
    stored = (result.rules or {}).get("headline")
    if isinstance(stored, list) and stored and all(isinstance(name, str) for name in stored):
        return stored
    from lightning_genesis.evaluation.protocols import PROTOCOLS  # imports torch; for old results alone

    known = {str(name): rules for name, rules in PROTOCOLS.items()}
    return known[protocol].headline_of(result.dataset) if protocol in known else HEADLINE


def _title(protocol: str | None, split: str) -> str:
    """A section's name in a line of text."""
    return f"protocol {protocol}" if protocol else f"the whole {split} split"


def _without_repeated_seeds(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    kept: list[Run] = []
    problems = []
    first: dict[tuple[str, int], Run] = {}
    for run in runs:
        key = (run.experiment, run.seed)
        if run.seed is not None and first.setdefault(key, run) is not run:  # type: ignore[arg-type]
            other = first[key].folder  # type: ignore[index]
            problems.append(
                f"{run.folder}: seed {run.seed} of {run.experiment} is also {other}: not counted twice"
            )
        else:
            kept.append(run)
    return kept, problems


def _unshared(
    found: Mapping[tuple[str | None, str], list[_Entry]], runs: Sequence[Run], protocol: str | None
) -> list[str]:
    """Runs without numbers that they should be compared by."""
    problems = []
    for (name, split), entries in found.items():
        here = {entry.run.folder for entry in entries}
        experiments = {entry.run.experiment for entry in entries}
        title = _title(name, split)
        problems += [
            f"{run.folder}: no numbers of {title}, which other runs have"
            for run in runs
            if run.folder not in here and (run.experiment in experiments or protocol is not None)
        ]
    places: dict[str, dict[str, set[tuple[str | None, str]]]] = defaultdict(lambda: defaultdict(set))
    for section, entries in found.items():
        for entry in entries:
            places[entry.result.dataset][entry.run.experiment].add(section)
    for dataset, sections in places.items():
        # every test has the whole split, beside which a protocol's images are what papers are compared by
        named = {experiment: {key for key in keys if key[0]} for experiment, keys in sections.items()}
        if not set.intersection(*(named if any(named.values()) else sections).values()):
            each = "; ".join(
                f"{experiment}: "
                + ", ".join(sorted({name or f"whole {split}" for name, split in named[experiment] or keys}))
                for experiment, keys in sections.items()
            )
            problems.append(
                f"{dataset}: no protocol is common to all experiments ({each}): different tables show them"
            )
    return problems


def _make_section(protocol: str | None, split: str, entries: Sequence[_Entry]) -> tuple[Section, list[str]]:
    title = _title(protocol, split)
    problems = [
        f"{entry.run.folder}: {', '.join(names)} of {title} not finite: left out"
        for entry in entries
        if (names := [name for name, value in entry.result.metrics.items() if value is None])
    ]
    members: dict[str, list[str]] = {title: [] for title in (*FAMILIES, OTHERS)}
    for name in sorted({name for entry in entries for name in entry.result.metrics}, key=metric_order):
        members[family_of(name)].append(name)
    tables = []
    for title, names in members.items():
        table, more = _make_table(title, names, protocol, entries)
        problems += [problem for problem in more if problem not in problems]
        tables += table.fitting() if table.rows else []
    headline = _headline(protocol, entries)
    densities = {row.density for table in tables for row in table.rows if row.density}
    remarks = _remarks(entries) + _fewer_seeds(tables)
    if densities:
        remarks.append(
            "ELBO and NLL of rows with different σ or likelihood, which their labels name, are of different "
            "densities: no comparison"
        )
    cells = [cell for table in tables for row in table.rows for cell in row.cells.values()]
    if protocol is None and any(cell.comparisons for cell in cells):
        remarks.append("the papers' numbers are of other images and rules; `test --protocol` has theirs")
    return Section(protocol, split, tables, remarks, headline), problems


def _headline(protocol: str | None, entries: Sequence[_Entry]) -> list[Table]:
    """What the protocol's paper shows of each dataset, in its order; of the whole split our own choice."""
    columns = {entry.result.dataset: _paper_columns(protocol, entry.result) for entry in entries}
    names = list(dict.fromkeys(name for headline in columns.values() for name in headline))
    table, _ = _make_table("Headline", names, protocol, entries)
    kept = [column for column in table.columns if column.metric in columns[column.dataset]]
    return Table(table.title, kept, table.rows).fitting() if kept else []


def _make_table(
    title: str, names: Sequence[str], protocol: str | None, entries: Sequence[_Entry]
) -> tuple[Table, list[str]]:
    groups: dict[tuple[str, str, bool], list[_Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.run.experiment, entry.result.dataset, entry.result.synthetic].append(entry)
    rows: dict[str, Row] = {}
    problems = []
    for (experiment, dataset, synthetic), group in groups.items():
        for name in names:
            variants, differing = _variants(name, group)
            if len({frozenset(runs) for runs in variants.values()}) > 1:
                problems.append(
                    f"{experiment}: {metric_of(name).label} of its runs was evaluated with different "
                    f"{', '.join(differing)}: shown in rows of their own; evaluate all alike"
                )
            for options, by_run in variants.items():
                members = list(by_run.values())
                told = differing
                if is_published(experiment) and members[0].evaluated_as != experiment:
                    told = list(dict.fromkeys([FLEXIBLE_SLOTS, *differing]))
                label = row_label(experiment, dataset) + _show_options(dict(options), told)
                cell = _make_cell(name, protocol, members)
                rows.setdefault(label, Row(label)).cells[Column(dataset, synthetic, name)] = cell
    columns = [
        column
        for dataset, synthetic in dict.fromkeys((dataset, synthetic) for _, dataset, synthetic in groups)
        for name in names
        if any((column := Column(dataset, synthetic, name)) in row.cells for row in rows.values())
    ]
    _name_densities(rows.values())
    return Table(title, columns, list(rows.values())), problems


def _name_densities(rows: Iterable[Row]) -> None:
    """Adds likelihood and σ to the labels of rows, where a column holds several of them."""
    found: dict[Column, set[str]] = defaultdict(set)
    for row in rows:
        for column, cell in row.cells.items():
            if cell.density is not None:
                found[column].add(cell.density)
    mixed = {column for column, densities in found.items() if len(densities) > 1}
    for row in rows:
        own = {cell.density: None for column, cell in row.cells.items() if column in mixed and cell.density}
        if own:
            row.density = "; ".join(own)
            row.label += f" [{row.density}]"


def _show_options(options: Mapping[str, str], names: Iterable[str]) -> str:
    """Some options in brackets; nothing if there are none to show."""
    shown = [
        f"{name.removeprefix(f'{MODEL}.')} {options.get(name)}"
        for name in names
        if name in options or not (name == MODEL or (name.startswith(f"{MODEL}.") and MODEL in options))
    ]
    return f" ({', '.join(shown)})" if shown else ""


_Options = tuple[tuple[str, str], ...]


def _variants(name: str, entries: Iterable[_Entry]) -> tuple[dict[_Options, dict[str, _Entry]], list[str]]:
    """The runs that have a metric, apart by what it depends on, each with its latest weights.

    Returns:
        options to runs to their entries, and the names of the options in which they differ.
    """
    variants: dict[_Options, dict[str, _Entry]] = defaultdict(dict)
    for entry in entries:
        if entry.result.metrics.get(name) is not None:
            runs = variants[tuple(sorted(entry.options(name).items()))]
            folder = str(entry.run.folder)
            if folder not in runs or entry.age > runs[folder].age:
                runs[folder] = entry
    each = [dict(options) for options in variants]
    known = dict.fromkeys(option for options in each for option in options)
    with_model = [options for options in each if MODEL not in options]  # which stands for "not stored"
    compared = {
        option: {options.get(option) for options in (with_model if option.startswith(f"{MODEL}.") else each)}
        for option in known
    }
    return variants, [option for option, values in compared.items() if len(values) > 1]


def _make_cell(name: str, protocol: str | None, entries: Sequence[_Entry]) -> Cell:
    metric = metric_of(name)
    values = [value * metric.factor for entry in entries if (value := entry.result.metrics[name]) is not None]
    summary = summarise(values, metric)
    comparisons = tuple(
        Comparison(published, summary.mean - published.mean)
        for published in find_published(entries[0].evaluated_as, name, protocol)
    )
    density = entries[0].density if base_name(name) in DENSITIES else None
    return Cell(summary, tuple(entry.run.name for entry in entries), comparisons, tuple(values), density)


def _remarks(entries: Sequence[_Entry]) -> list[str]:
    """In what the evaluations differ from the papers', and of what."""
    everything: dict[str, set[str]] = defaultdict(set)
    about: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in entries:
        group = dataset_label(entry.result.dataset, entry.result.synthetic)
        label = row_label(entry.run.experiment, entry.result.dataset)
        everything[group].add(label)
        for line in in_words(entry.result.deviations, entry.result.rules):
            about[group, line][label] = None
        if entry.result.checkpoint is None:
            about[group, "the weights are untrained"][entry.run.name] = None
    for (group, line), who in about.items():
        together[group, "" if set(who) == everything[group] else f" ({'; '.join(who)})"].append(line)
    return [f"{group}: {'; '.join(lines)}{who}" for (group, who), lines in together.items()]


def _fewer_seeds(tables: Iterable[Table]) -> list[str]:
    """Rows with fewer seeds than are behind a mean that they are compared with."""
    found = {
        f"{row.label}: {cell.summary.count} of {comparison.published.seeds}": None
        for table in tables
        for row in table.rows
        for cell in row.cells.values()
        for comparison in cell.comparisons
        if cell.summary.count < (comparison.published.seeds or 0)
    }
    return [f"fewer seeds than behind the published means ({', '.join(found)})"] if found else []
