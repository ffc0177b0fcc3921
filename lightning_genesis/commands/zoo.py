"""`lightning-genesis zoo [NAME]`: the trained models that come along, with their scores; NAME shows a card.

`zoo:NAME` stands for one wherever a command takes weights: `sample`, `figures`, `probe`, `fit-prior`,
`generation`, `label`, `--ckpt_path`, `--init_from`, and `lightning_genesis.load("zoo:NAME")`.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from lightning_genesis.commands.arguments import CommandParser
from lightning_genesis.runs.zoo import PREFIX, Card, find_in_zoo, list_zoo

COLUMNS = ("ari_fg", "msc_fg", "ari")
"""Scores in the table, by decoded and by attention masks; a card has all."""


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ConfigurationError: if the zoo has no such model.
    """
    parser = CommandParser(prog="lightning-genesis zoo", description=__doc__)
    parser.add_argument("name", nargs="?", help="of one model, for its card")
    options = parser.parse_args(list(args))
    console = Console(soft_wrap=True, highlight=False)
    if options.name is None:
        console.print(table(list_zoo()))
        console.print(
            "scores by decoded / attention masks; `zoo NAME` shows a card,\n"
            "`sample zoo:NAME --output DIR` draws scenes, `figures zoo:NAME --output DIR` pictures"
        )
    else:
        show(find_in_zoo(options.name), console)


def table(cards: Sequence[Card]) -> Table:
    """All models with their scores on fresh test scenes, by decoded / attention masks."""
    names = {"ari_fg": "ARI-FG", "msc_fg": "mSC-FG", "ari": "ARI"}
    headings = (*(names[key] for key in COLUMNS), "MSE", "MB")
    numbers = (
        Column(heading, overflow="fold") for heading in headings
    )  # a digit less would be another number
    found = Table(Column("zoo:", no_wrap=True), *numbers, box=SIMPLE_HEAD)
    for card in cards:
        scores = card.contents["scores"]
        pairs = ([scores.get(key), scores.get(f"{key}_attention")] for key in COLUMNS)
        cells = [" / ".join(f"{pair[0]:.2f}" for pair in each if pair is not None) for each in pairs]
        size = f"{card.weights.stat().st_size / 1e6:.1f}"
        found.add_row(card.name, *cells, f"{scores['mse'][0]:.4f}" if "mse" in scores else "", size)
    return found


def score(mean: float, error: float) -> str:
    """A mean with its standard error, to the digit that the error has."""
    digits = next((n for n in range(2, 6) if round(error, n)), 6)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def show(card: Card, console: Console) -> None:
    """A model's card."""
    told = card.contents
    lines = {
        "system": told["system"],
        "data": told["data"],
        "good at": told["good"],
        "bad at": told["bad"],
        "scores": f"{told['num_images']} test scenes, mean ± standard error",
        **{f"  {name}": score(*value) for name, value in told["scores"].items()},
        "again by": told["test"],
        "trained by": told["train"][0],
        **{f"{' ' * (n + 1)}then": line for n, line in enumerate(told["train"][1:])},
        "took": f"{told['seconds']} s on {told['hardware']}; seed {told['seed']}, commit {told['commit']}",
        "file": str(card.weights),
        "licence": told["licence"],
    }
    width = max(len(name) for name in lines)
    console.print(f"{PREFIX}{card.name}", style="bold", markup=False)
    for name, text in lines.items():
        console.print(f"{name:<{width}}  {text}", markup=False)
