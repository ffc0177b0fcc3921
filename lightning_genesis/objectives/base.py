"""What every objective has in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.scene import Terms


class Objective(nn.Module):
    """Balances the terms of a model's branches into one loss and moves its own state after each step.

    The state lives in persistent float32 buffers, one entry per branch, so that weights, checkpoints and
    importers carry it. `forward` only reads it; `update` is called once per optimiser step, after backward.
    """

    branches: tuple[str, ...] = ()
    arguments: dict[str, Any]
    """What the constructor was called with, by name."""

    def plain(self) -> dict[str, Any]:
        """The objective as plain data, in the form that a YAML file has."""
        kind = type(self)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(self.arguments)}

    def bind(self, branches: Sequence[str]) -> None:
        """Names the branches whose terms will come, in order. The model calls this once."""
        self.branches = tuple(branches)

    def forward(self, terms: dict[str, Terms], num_dimensions: int) -> Tensor:
        """Loss of a batch.

        Args:
            terms: of every branch, by name.
            num_dimensions: numbers in one image, 3 H W.

        Returns:
            scalar, nats per image.
        """
        raise NotImplementedError

    def weights(self) -> Tensor:
        """Weights of the error and of the divergences of every branch in the gradient of the loss now.

        For an inference that follows this gradient (EfficientMORL).

        Returns:
            `[2, branches]`.
        """
        raise NotImplementedError

    def update(self, finite: Tensor | None = None) -> None:
        """Moves the state after an optimiser step, with what `forward` saw since the last one.

        Args:
            finite: scalar; where it is False the state stays as it was.
        """
        raise NotImplementedError

    def goal_met(self, num_dimensions: int) -> Tensor | None:
        """Whether the error of every branch has reached its goal, bool `[branches]`; None without goals.

        Args:
            num_dimensions: numbers in one image, 3 H W.
        """
        del num_dimensions
        return None

    def forget(self) -> None:
        """Drops what `forward` has summed up for `update`, which no checkpoint holds; training starts so."""

    def log_values(self) -> dict[str, Tensor]:
        """What to log of the state, scalars by name."""
        return {}


def weighted_means(terms: dict[str, Terms]) -> tuple[Tensor, Tensor]:
    """`Σ_steps weight mean nll` and `Σ_steps weight mean KL` of every branch, each `[branches]`."""
    nll = torch.stack([_over_steps(term, lambda step: step.nll) for term in terms.values()])
    kl = torch.stack([_over_steps(term, lambda step: step.total_kl) for term in terms.values()])
    return nll, kl


def _over_steps(term: Terms, value: Callable[[Terms], Tensor]) -> Tensor:
    last = term.weight * value(term).mean()
    earlier = [step.weight * value(step).mean() for step in term.steps]
    return torch.stack([*earlier, last]).sum() if earlier else last


def weighted_sum(terms: dict[str, Terms], beta: Tensor) -> Tensor:
    """`Σ_branches Σ_steps weight (mean nll + β mean KL)`; `beta` has one entry per branch."""
    nll, kl = weighted_means(terms)
    return (nll + beta * kl).sum()


def objective_from_plain(plain: Mapping[str, Any]) -> Objective:
    """Builds an objective from what `Objective.plain` returned.

    Only subclasses of `Objective` that are already imported are built, so that data from a file cannot run
    anything else.

    Raises:
        ConfigurationError: if there is no such objective.
    """
    known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _subclasses(Objective)}
    if plain.get("class_path") not in known:
        raise ConfigurationError(
            f"objective {plain.get('class_path')!r} is unknown: use one of {', '.join(known)}"
        )
    return known[plain["class_path"]](**plain.get("init_args", {}))


def _subclasses(kind: type[Objective]) -> list[type[Objective]]:
    return [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]
