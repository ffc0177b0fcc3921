"""Tables as Markdown and CSV."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning_genesis.report.cells import CONFIDENCE, Cell, cell_lines, headline_lines
from lightning_genesis.report.comparisons import FAILED_BELOW, best_rows, differences, failed_seeds
from lightning_genesis.report.names import SYNTHETIC, Metric, metric_of
from lightning_genesis.report.tables import Section, Table

LEGEND = (
    "Mean ± standard deviation over seeds (number of seeds); bold: the best of a column, or what looks it",
    f"{CONFIDENCE:.0%} confidence interval of the mean (Student's t), within the score's range".replace(
        "%", " %"
    ),
    "the paper's value, and how far ours is from it: in published standard deviations σ, or as a difference "
    "where none, or 0.00, is printed",
    "Scores are of the decoded masks unless attention is named",
    f"A seed has failed with an ARI-FG below {FAILED_BELOW} (interval of the share: Wilson's). Intervals of "
    "differences are Welch's, one by one: of many, some lie beside 0 by chance",
    f"{SYNTHETIC} images rendered by this project in place of the publisher's, which the paper's value is of",
)
"""How the numbers are read."""


def to_markdown(sections: Sequence[Section], problems: Sequence[str]) -> str:
    """All tables, headed by what is not as it should be."""
    lines = ["# Results", "", *(f"- {line}" for line in LEGEND), ""]
    if problems:
        lines += ["## Not as it should be", "", *(f"- {_escaped(problem)}" for problem in problems), ""]
    for section in sections:
        lines += [
            f"## {_escaped(section.title)}",
            "",
            *(f"- {_escaped(remark)}" for remark in section.remarks),
            "",
        ]
        for table in section.headline:
            lines += _markdown_table(table, headline_lines)
        told = [
            str(line) for table in section.headline for line in (*failed_seeds(table), *differences(table))
        ]
        lines += [*(f"- {_escaped(line)}" for line in told), ""]
        for table in section.tables:
            lines += _markdown_table(table, cell_lines)
    return "\n".join(lines)


def _markdown_table(table: Table, say: Callable[[Cell | None, Metric], list[str]]) -> list[str]:
    heads = [_escaped(f"{column.group} {metric_of(column.metric).label}") for column in table.columns]
    best = {column: best_rows(table, column) for column in table.columns}
    lines = [
        f"### {_escaped(table.title)}",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for row in table.rows:
        cells = []
        for column in table.columns:
            first, *others = [
                _escaped(line) for line in say(row.cells.get(column), metric_of(column.metric))
            ] or [""]
            cells.append("<br>".join([f"**{first}**" if row.label in best[column] else first, *others]))
        lines.append(f"| {_escaped(row.label)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _escaped(text: str) -> str:
    for character in "\\|<>*_`[]#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


# ---------------------------------------------------------------- CSV

FIELDS = (
    *(
        "protocol",
        "split",
        "table",
        "model",
        "density",
        "dataset",
        "synthetic",
        "metric",
        "unit_factor",
        "seeds",
        "mean",
        "std",
    ),
    *("interval_low", "interval_high", "runs", "paper", "where", "published", "published_std", "difference"),
    "difference_in_std",
)


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""


def to_csv(sections: Sequence[Section]) -> str:
    """One line per cell and published value, for programs: numbers as shown, but not rounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    for entry in entries(sections):
        writer.writerow({name: _defused(value) for name, value in entry.items()})
    return text.getvalue()


def entries(sections: Sequence[Section]) -> Iterator[dict[str, Any]]:
    """All cells, once for each published value: `FIELDS`, those of the published value where there is one."""
    for section in sections:
        for table in section.tables:
            for row in table.rows:
                for column, cell in row.cells.items():
                    summary = cell.summary
                    low, high = summary.interval or (None, None)
                    entry = {
                        "protocol": section.protocol,
                        "split": section.split,
                        "table": table.title,
                        "model": row.label,
                        "density": cell.density,
                        "dataset": column.dataset,
                        "synthetic": column.synthetic,
                        "metric": column.metric,
                        "unit_factor": metric_of(column.metric).factor,
                        "seeds": summary.count,
                        "mean": summary.mean,
                        "std": summary.std,
                        "interval_low": low,
                        "interval_high": high,
                        "runs": " ".join(cell.runs),
                    }
                    for comparison in cell.comparisons or (None,):
                        if comparison is not None:
                            entry |= {
                                "paper": comparison.published.paper,
                                "where": comparison.published.where,
                                "published": comparison.published.mean,
                                "published_std": comparison.published.std,
                                "difference": comparison.difference,
                                "difference_in_std": comparison.deviations,
                            }
                        yield dict(entry)


def _defused(value: Any) -> Any:
    """Text that a spreadsheet would compute, with the mark that it is text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
