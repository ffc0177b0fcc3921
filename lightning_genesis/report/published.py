"""The numbers of the papers, read from `published.yaml`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """A cell of a paper's table."""

    paper: str
    where: str
    """Table or section."""
    protocol: str | None
    """How it was evaluated, a name in `protocols.PROTOCOLS`; None if it is none of these."""
    seeds: int | None
    """Models behind the mean; None if it is not said."""
    experiment: str
    metric: str
    text: str
    """As printed, in the unit that the report shows."""

    @property
    def mean(self) -> float:
        """The value, or the mean."""
        return float(self.text.split("±")[0])

    @property
    def std(self) -> float | None:
        """The standard deviation, None if none is printed."""
        parts = self.text.split("±")
        return float(parts[1]) if len(parts) == 2 else None


@cache
def read_published() -> tuple[Published, ...]:
    """Every cell, in the file's order."""
    tables = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(
        Published(
            table["paper"], table["where"], table["protocol"], table.get("seeds"), experiment, metric, text
        )
        for table in tables
        for metric, cells in table["values"].items()
        for experiment, text in cells.items()
    )


def is_published(experiment: str) -> bool:
    """Whether papers print anything of an experiment, by the name of its file without `.yaml`."""
    return any(cell.experiment == experiment for cell in read_published())


def find_published(experiment: str, metric: str, protocol: str | None) -> list[Published]:
    """What papers print for a metric of an experiment.

    Args:
        experiment: name of its file, without `.yaml`.
        metric: its name; by which masks is not told apart, since the papers do not say.
        protocol: only values of this protocol, and of none; all if None.
    """
    return [
        cell
        for cell in read_published()
        if cell.experiment == experiment
        and cell.metric == metric.removesuffix("_attention")
        and (protocol is None or cell.protocol in (protocol, None))
    ]
