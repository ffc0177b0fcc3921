"""Reads many command lines of `fit` and `test` in one process, for `sweep`: a new process takes seconds.

A list of command lines, as JSON, comes in; for each, what `--print_config` shows of it goes out, or the line
that answers a mistake. The first mistake is the last entry.
"""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

from lightning_genesis.cli import main as command


def read(line: list[str]) -> dict[str, str]:
    """`config`, the YAML of a command line, or `error`."""
    out, told = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(told):
            command([*line, "--print_config"])
    except SystemExit as stopped:
        if not stopped.code:
            return {"config": out.getvalue()}
    lines = [row for row in told.getvalue().splitlines() if row.startswith("lightning-genesis: ")]
    return {"error": (lines or told.getvalue().splitlines() or ["no reason given"])[-1]}


if __name__ == "__main__":
    answers: list[dict[str, str]] = []
    for words in json.load(sys.stdin):
        answers.append(read(words))
        if "error" in answers[-1]:
            break
    print(json.dumps(answers))
