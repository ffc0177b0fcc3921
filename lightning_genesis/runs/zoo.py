"""Trained models that come along: `zoo:NAME` stands for one wherever a command takes weights.

```
lightning_genesis/zoo/NAME/
  NAME.safetensors   the weights, and the data they belong to
  NAME.yaml          the experiment of the last stage of training; `fit --config zoo:NAME` trains on from it
  card.yaml          what it is, where it comes from, its scores, what it is bad at
  priors/            what fit-prior made for it, if anything
```
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import lightning_genesis
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.storage.files import sha256_of
from lightning_genesis.storage.yaml_file import read_mapping

PREFIX = "zoo:"
KEYS = {
    "system": str,
    "data": str,
    "sha256": str,
    "train": list,
    "test": str,
    "seconds": int,
    "hardware": str,
    "commit": str,
    "seed": int,
    "num_images": int,
    "scores": dict,
    "good": str,
    "bad": str,
    "licence": str,
}
"""Of a card, with the kinds of their values; tests hold every card against it."""


class Card(NamedTuple):
    """A trained model of the zoo."""

    name: str
    """What follows `zoo:`."""
    folder: Path
    contents: dict[str, Any]
    """By the keys of `KEYS`; `scores` maps a metric's name to its mean and its standard error over images."""

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def experiment(self) -> Path:
        """The configuration of the last stage of its training."""
        return self.folder / f"{self.name}.yaml"


def zoo_folder() -> Path:
    """Where the zoo is."""
    return Path(lightning_genesis.__file__).parent / "zoo"


def list_zoo() -> list[Card]:
    """All trained models that come along, by name."""
    folders = sorted(path.parent for path in zoo_folder().glob("*/card.yaml"))
    return [Card(folder.name, folder, read_mapping(folder / "card.yaml")) for folder in folders]


def is_in_zoo(name: str | Path) -> bool:
    """Whether a name is one of the zoo, as `zoo:sri-mog_sprites`."""
    return str(name).startswith(PREFIX)


def find_in_zoo(name: str | Path) -> Card:
    """The trained model of a name, `zoo:NAME`.

    Raises:
        ConfigurationError: if there is none; the message names the closest.
    """
    cards = {card.name: card for card in list_zoo()}
    wanted = str(name).removeprefix(PREFIX)
    if wanted in cards:
        return cards[wanted]
    close = get_close_matches(wanted, cards, n=1)
    hint = f" (did you mean {PREFIX}{close[0]}?)" if close else ""
    raise ConfigurationError(f"{name}: not in the zoo{hint}; `lightning-genesis zoo` lists what is")


def find_weights(path: str | Path) -> Path:
    """The file that `zoo:NAME` stands for, compared with its card; any other path as it is.

    Raises:
        CheckpointError: if the file is not the one that the card is about.
        ConfigurationError: if the zoo has no such model.
    """
    if not is_in_zoo(path):
        return Path(path)
    card = find_in_zoo(path)
    if not card.weights.is_file():
        raise CheckpointError(f"{path}: {card.weights} is not there; install the package again")
    found, expected = sha256_of(card.weights), card.contents["sha256"]
    if found != expected:
        raise CheckpointError(
            f"{path}: {card.weights} was changed: SHA-256 {found[:12]}…, expected {expected[:12]}…"
        )
    return card.weights
