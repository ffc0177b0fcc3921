"""Tables as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from lightning_genesis.report.cells import CONFIDENCE, cell_lines
from lightning_genesis.report.names import SYNTHETIC, metric_of
from lightning_genesis.report.tables import Section, Table

LEGEND = (
    "Mean ± standard deviation over seeds (number of seeds)",
    f"{CONFIDENCE:.0%} confidence interval of the mean (Student's t)".replace("%", " %"),
    "the paper's value, and how far ours is from it: in published standard deviations σ, or as a difference "
    "where none, or 0.00, is printed",
    f"{SYNTHETIC} images rendered by this project in place of the publisher's, which the paper's value is of",
)
"""What the lines of a cell are."""


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
        for table in section.tables:
            heads = [_escaped(f"{column.group} {metric_of(column.metric).label}") for column in table.columns]
            lines += [
                f"### {_escaped(table.title)}",
                "",
                f"| | {' | '.join(heads)} |",
                "|---" * (len(heads) + 1) + "|",
            ]
            for row in table.rows:
                cells = [
                    "<br>".join(map(_escaped, cell_lines(row.cells.get(column), metric_of(column.metric))))
                    for column in table.columns
                ]
                lines.append(f"| {_escaped(row.label)} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    for character in "\\|<>*_`[]#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


# ---------------------------------------------------------------- LaTeX

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "−": "$-$",
        "σ": r"$\sigma$",
        SYNTHETIC: r"\dag{}",
    }
)


def to_latex(sections: Sequence[Section]) -> str:
    """One `table` after the other, with the commands of the package booktabs."""
    lines = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        lines += [line for table in section.tables for line in ("", *_latex_table(section, table))]
    return "\n".join(lines) + "\n"


def _latex_table(section: Section, table: Table) -> list[str]:
    groups = " & ".join(rf"\multicolumn{{{n}}}{{c}}{{{_latex(name)}}}" for name, n in table.groups())
    heads = " & ".join(_latex(metric_of(column.metric).label) for column in table.columns)
    caption = ". ".join((table.title, section.title, *LEGEND))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(caption)}.}}",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        rf" & {groups} \\",
        rf" & {heads} \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [cell_lines(row.cells.get(column), metric_of(column.metric)) for column in table.columns]
        for number in range(max(map(len, cells))):
            parts = [_latex(cell[number]) if number < len(cell) else "" for cell in cells]
            if number:
                parts = [rf"{{\footnotesize {part}}}" if part else "" for part in parts]
            lines.append(rf"{'' if number else _latex(row.label)} & {' & '.join(parts)} \\")
        lines.append(r"\addlinespace")
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def _latex(text: str) -> str:
    return text.translate(_LATEX)


# ---------------------------------------------------------------- CSV

FIELDS = (
    *(
        "protocol",
        "split",
        "table",
        "model",
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
                        writer.writerow({name: _defused(value) for name, value in entry.items()})
    return text.getvalue()


def _defused(value: Any) -> Any:
    """Text that a spreadsheet would compute, with the mark that it is text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
