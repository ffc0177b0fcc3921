"""`lightning-genesis report RUN...`: tables, curves and pictures of runs, beside the papers' numbers.

RUN is a run's folder. Seeds of one experiment become one row: mean and standard deviation over them. Written
are `report.html`, one page that needs nothing else, and the tables alone as `tables.md`, `tables.tex` and
`tables.csv`. What had to be left out is named, and the command then ends with exit code 1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_genesis.commands.arguments import CommandParser
from lightning_genesis.errors import ConfigurationError, Incomplete
from lightning_genesis.report.page import render_page
from lightning_genesis.report.runs import Run, read_run
from lightning_genesis.report.tables import Section, make_sections
from lightning_genesis.report.writers import to_csv, to_latex, to_markdown
from lightning_genesis.storage.files import replacing

PAGE = "report.html"
"""The page's name; a folder that holds one is a report, not a run."""


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ConfigurationError: if an option is wrong, a folder is not there, or there is nothing to report.
        Incomplete: if something had to be left out of the report, which is written.
    """
    parser = CommandParser(prog="lightning-genesis report", description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="a run's folder")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write to")
    parser.add_argument("--protocol", help="only these numbers: a protocol, or `none` for the whole split")
    options = parser.parse_args(list(args))
    report(options.run, options.output, options.protocol)


def report(folders: Sequence[Path], output: Path, protocol: str | None = None) -> None:
    """Reads runs and writes the report.

    Args:
        folders: of the runs.
        output: folder to write to; what it holds of an earlier report is replaced.
        protocol: a protocol's name, `none` for numbers of the whole split; all there are if None.

    Raises:
        ConfigurationError: if a folder is not there or is none, or there is nothing to report.
        Incomplete: if something had to be left out.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"report: {folder}: no such folder, expected that of a run")
    if output.exists() and not output.is_dir():
        raise ConfigurationError(f"report: {output}: is a file, expected a folder to write to")
    unique = {folder.resolve(): folder for folder in folders if not (folder / PAGE).is_file()}
    runs = [read_run(folder) for folder in unique.values()]
    problems = [problem for run in runs for problem in run.problems]
    runs = [run for run in runs if run.results or run.history]
    if not runs:
        raise ConfigurationError(f"report: nothing to report: {'; '.join(problems) or 'no run was given'}")
    sections, more = make_sections(runs, protocol)
    problems += more
    _write(output, runs, sections, problems)
    print(f"{len(runs)} runs -> {output / PAGE}")
    for problem in problems:
        print(f"lightning-genesis: {problem}", file=sys.stderr)
    if problems:
        count = "one thing is" if len(problems) == 1 else f"{len(problems)} things are"
        raise Incomplete(f"report: {output / PAGE} is written, but {count} not as it should be, see above")


def _write(output: Path, runs: list[Run], sections: list[Section], problems: list[str]) -> None:
    texts = {
        PAGE: render_page(runs, sections, problems),
        "tables.md": to_markdown(sections, problems),
        "tables.tex": to_latex(sections),
        "tables.csv": to_csv(sections),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
