"""`lightning-genesis report RUN...`: tables, curves and pictures of runs, beside the papers' numbers.

RUN is a run's folder. Seeds of one experiment become one row: mean and standard deviation over them. Written
are `report.html`, one page that needs nothing else, and the tables alone as `tables.md`, `tables.tex` and
`tables.csv`. What had to be left out is named, and the command then ends with exit code 1.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_genesis.commands.arguments import CommandParser
from lightning_genesis.errors import ConfigurationError, Incomplete, UserError
from lightning_genesis.report.latex import to_latex
from lightning_genesis.report.page import render_page
from lightning_genesis.report.runs import Run, read_run
from lightning_genesis.report.tables import make_sections
from lightning_genesis.report.writers import to_csv, to_markdown
from lightning_genesis.storage.files import replacing
from lightning_genesis.storage.text import shown

PAGE = "report.html"
"""The page's name; a folder that holds one is a report, not a run."""
PREDICTIONS = "predictions"
"""Where `predict` writes."""


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
    parser.add_argument("--wandb", action="store_true", help="log the tables to the W&B runs as well")
    options = parser.parse_args(list(args))
    report(options.run, options.output, options.protocol, options.wandb)


def report(folders: Sequence[Path], output: Path, protocol: str | None = None, wandb: bool = False) -> None:
    """Reads runs and writes the report.

    Args:
        folders: of the runs.
        output: folder to write to; what it holds of an earlier report is replaced.
        protocol: a protocol's name, `none` for numbers of the whole split; all there are if None.
        wandb: log the tables to those runs of W&B that the runs' folders name.

    Raises:
        ConfigurationError: if a folder is not there or is none, or there is nothing to report.
        Incomplete: if something had to be left out.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"report: {folder}: no such folder, expected that of a run")
    if output.exists() and not output.is_dir():
        raise ConfigurationError(f"report: {output}: is a file, expected a folder to write to")
    unique = {folder.resolve(): folder for folder in folders if not _is_no_run(folder)}
    problems: list[str] = []
    runs = [run for folder in unique.values() if (run := _read(folder, problems))]
    if not runs:
        reasons = shown("; ".join(problems) or "no run was given")
        raise ConfigurationError(f"report: nothing to report: {reasons}")
    runs, texts, problems = _texts_of_good(runs, protocol, problems)
    _write(output, texts)
    print(f"{len(runs)} runs -> {output / PAGE}")
    if wandb:
        _send(runs, protocol)
    for problem in problems:
        print(f"lightning-genesis: {problem}", file=sys.stderr)
    if problems:
        count = "one thing is" if len(problems) == 1 else f"{len(problems)} things are"
        raise Incomplete(f"report: {output / PAGE} is written, but {count} not as it should be, see above")


def _send(runs: list[Run], protocol: str | None) -> None:
    from lightning_genesis.commands.to_wandb import send_report  # imports Lightning

    count, offline = send_report(runs, make_sections(runs, protocol)[0])
    print(f"tables -> {count} runs of W&B")
    if offline:
        print(f"offline; to upload: wandb sync {shlex.join(map(_near, offline))}")


def _near(path: Path) -> str:
    """A path as seen from here, where it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _is_no_run(folder: Path) -> bool:
    """Whether a folder is a report's, or one of `predict` with weights from elsewhere."""
    held = {path.name for path in folder.iterdir()}
    return PAGE in held or PREDICTIONS in held <= {PREDICTIONS, "wandb", "wandb-id.txt"}


def _read(folder: Path, problems: list[str]) -> Run | None:
    """A run that has something to show; what is wrong with it is added to `problems`."""
    try:
        run = read_run(folder)
    except Exception as error:  # a folder may hold anything; the others are shown all the same
        problems.append(f"{folder}: not readable ({_reason(error)}): left out")
        return None
    problems += run.problems
    return run if run.results or run.history else None


def _texts_of_good(
    runs: list[Run], protocol: str | None, problems: list[str]
) -> tuple[list[Run], dict[str, str], list[str]]:
    """The report of all runs that can be shown: these, the files by name, and all problems."""
    try:
        return runs, *_texts(runs, protocol, problems)
    except UserError:
        raise
    except Exception:  # whatever one of them holds, the others are shown
        good, bad = [], []
        for run in runs:
            try:
                _texts([run], None, [])
                good.append(run)
            except Exception as error:
                bad.append(f"{run.folder}: cannot be shown ({_reason(error)}): left out")
        if not good or not bad:
            raise
        return good, *_texts(good, protocol, problems + bad)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _texts(
    runs: list[Run], protocol: str | None, problems: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    sections, more = make_sections(runs, protocol)
    problems = [shown(problem) for problem in (*problems, *more)]
    page = render_page(runs, sections, problems)  # adds to the problems
    texts = {
        PAGE: page,
        "tables.md": to_markdown(sections, problems),
        "tables.tex": to_latex(sections),
        "tables.csv": to_csv(sections),
    }
    return texts, [shown(problem) for problem in problems]


def _write(output: Path, texts: Mapping[str, str]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
