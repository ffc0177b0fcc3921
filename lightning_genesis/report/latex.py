r"""Tables for a paper: compact cells `.85±.01`, the best in bold, rules of booktabs, caption and `\label`."""

import re
from collections.abc import Sequence

from lightning_genesis.report.cells import Cell, Summary, show_number
from lightning_genesis.report.comparisons import best_rows
from lightning_genesis.report.names import SYNTHETIC, Metric, metric_of
from lightning_genesis.report.tables import Column, Row, Section, Table

SHARE_DECIMALS = 2
"""Of scores in [0, 1], as in the papers."""
_ESCAPED = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "−": "$-$",
        "σ": r"$\sigma$",
        "β": r"$\beta$",
        SYNTHETIC: r"\dag{}",
        "…": r"\dots{}",
        "\u00a0": "~",
    }
)


def to_latex(sections: Sequence[Section]) -> str:
    r"""One `table` after the other: the headline of every section, then everything.

    A file of its own for `\input`; it needs the package booktabs, and a document in UTF-8.
    """
    lines = [r"% \usepackage{booktabs}"]
    for section in sections:
        for kind, tables in (("headline", section.headline), ("details", section.tables)):
            if tables:
                lines += ["", f"% ---- {section.title}: {kind}"]
            lines += [line for table in tables for line in ("", *_table(section, table))]
    return "\n".join(lines) + "\n"


def _table(section: Section, table: Table) -> list[str]:
    groups = table.groups()
    over = " & ".join(rf"\multicolumn{{{count}}}{{c}}{{{escape(name)}}}" for name, count in groups)
    rules, first = [], 2
    for _, count in groups:
        rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
        first += count
    heads = " & ".join(escape(metric_of(column.metric).label) for column in table.columns)
    best = {column: best_rows(table, column, _decimals(metric_of(column.metric))) for column in table.columns}
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(_caption(section, table))}}}",
        rf"\label{{{_label(section, table)}}}",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        rf" & {over} \\ {''.join(rules)}",
        rf"Model & {heads} \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [_cell(row.cells.get(column), column, row.label in best[column]) for column in table.columns]
        lines.append(rf"{escape(row.label)} & {' & '.join(cells)} \\")
        lines += _published_rows(row, table.columns)
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def _published_rows(row: Row, columns: Sequence[Column]) -> list[str]:
    """What the papers print, a row for each; of several tables of a paper the first counts."""
    papers: dict[str, dict[Column, str]] = {}
    for column in columns:
        cell = row.cells.get(column)
        for comparison in cell.comparisons if cell else ():
            published = comparison.published
            papers.setdefault(published.paper, {}).setdefault(column, _compact(published.text))
    return [
        rf"\quad as in {escape(paper)} & {' & '.join(values.get(column, '') for column in columns)} \\"
        for paper, values in papers.items()
    ]


def _cell(cell: Cell | None, column: Column, is_best: bool) -> str:
    if cell is None:
        return "--"
    text = compact(cell.summary, metric_of(column.metric))
    return rf"\textbf{{{text}}}" if is_best else text


def compact(summary: Summary, metric: Metric) -> str:
    """Mean and deviation of a cell, such as `.85±.01` in LaTeX; the mean alone for one seed."""
    numbers = [summary.mean] if summary.std is None else [summary.mean, summary.std]
    return _compact("±".join(show_number(number, _decimals(metric)) for number in numbers))


def _compact(text: str) -> str:
    """Without spaces and the zeros before a point."""
    return escape(re.sub(r"(?<![\d.])0(?=\.\d)", "", text.replace(" ", "").replace("-", "−")))


def _decimals(metric: Metric) -> int | None:
    return SHARE_DECIMALS if metric.range[1] == 1.0 else metric.decimals


def _caption(section: Section, table: Table) -> str:
    counts = {cell.summary.count for row in table.rows for cell in row.cells.values()}
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    title = section.title if _is_headline(table) else f"{table.title}. {section.title}"
    synthetic = any(column.synthetic for column in table.columns)
    return (
        f"{title}. Mean ± standard deviation over {seeds} {'seed' if seeds == '1' else 'seeds'}; the best in "
        "bold. Scores are of the decoded masks unless attention is named."
        + (f" {SYNTHETIC} synthetic stand-in for the published images." if synthetic else "")
    )


def _is_headline(table: Table) -> bool:
    return table.title.startswith("Headline")


def _label(section: Section, table: Table) -> str:
    r"""Of `\ref`: letters, digits and dashes."""
    title = table.title.removeprefix("Headline")
    words = f"{section.protocol or 'whole'} {section.split} {title}".replace(SYNTHETIC, "synthetic")
    return "tab:" + re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def escape(text: str) -> str:
    """Text as LaTeX shows it; what the usual fonts lack becomes a question mark."""
    return "".join(
        character if ord(character) < 127 or character in "äöüÄÖÜßéèá" else "?"
        for character in text.translate(_ESCAPED)
    )
