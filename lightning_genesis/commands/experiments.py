"""`lightning-genesis experiments [WORD...]`: the experiments that come along, with source and result.

With words, only those that have all of them. `fit --config NAME` runs one, from any folder.
"""

import re
from collections.abc import Sequence
from textwrap import fill

from rich.console import Console

from lightning_genesis.commands.arguments import CommandParser
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.runs.experiments import experiments_folder, list_experiments


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ConfigurationError: if no experiment has all the words.
    """
    parser = CommandParser(prog="lightning-genesis experiments", description=__doc__)
    parser.add_argument("word", nargs="*", help="in the name, the title, the source or the result")
    parser.add_argument("--long", action="store_true", help="the whole of source and result")
    options = parser.parse_args(list(args))
    words = [word.lower() for word in options.word]
    found = [one for one in list_experiments() if all(word in " ".join(one).lower() for word in words)]
    if not found:
        raise ConfigurationError(f"experiments: none has {' and '.join(options.word)}; leave words out")
    console = Console(soft_wrap=True)
    width = max(len(one.name) for one in found)
    for one in found:
        if options.long:
            line = f"{one.name}\n  {one.title}.\n  Source: {one.source}\n  Expected: {one.expected}"
        else:
            source = re.split(r" \(|[;:.] ", f"{one.source} ")[0].strip()
            line = f"{one.name:<{width}}  {one.title} [{source}]: {one.expected.partition('. ')[0]}"
            line = fill(line, console.width, subsequent_indent="    ")
        console.print(line, highlight=False, markup=False)
    console.print(f"{len(found)} in {experiments_folder()}", highlight=False, markup=False)
