"""What every objective has in common."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.precision import full_precision
from lightning_genesis.scene import Terms


class TermMeans(NamedTuple):
    """Means over the batch of all terms of all branches: errors, divergences, then those of earlier steps."""

    names: tuple[str, ...]
    """Of errors and divergences; the earlier steps, which come last, have none."""
    values: Tensor
    """`[R]`."""
    layout: tuple[tuple[int, bool, float], ...]
    """Of every mean its branch, whether it is a divergence, and its weight in the loss."""

    @staticmethod
    def of(terms: dict[str, Terms]) -> "TermMeans":
        """Two kernels, however many terms there are."""
        branches = list(enumerate(terms.items()))
        rows = [(f"{name} nll", term.nll, (i, False, term.weight)) for i, (name, term) in branches]
        for i, (name, term) in branches:
            rows += [(f"{name} KL {kl}", value, (i, True, term.weight)) for kl, value in term.kl.items()]
        names = tuple(name for name, _, _ in rows)
        for i, (_, term) in branches:
            for step in term.steps:
                rows.append(("", step.nll, (i, False, step.weight)))
                rows += [("", value, (i, True, step.weight)) for value in step.kl.values()]
        values = torch.stack([value for _, value, _ in rows]).mean(dim=1)
        return TermMeans(names, values, tuple(place for _, _, place in rows))

    @property
    def num_branches(self) -> int:
        """How many branches there are."""
        return 1 + max(branch for branch, _, _ in self.layout)

    def share(self, of_kl: bool) -> list[list[float]]:
        """Weight of every mean in the loss under its own branch, 0 for those of the other kind."""
        branches = range(self.num_branches)
        return [
            [weight if (branch, is_kl) == (column, of_kl) else 0.0 for column in branches]
            for branch, is_kl, weight in self.layout
        ]

    def coefficients(self, fixed: dict[bool, float]) -> list[float]:
        """Weight of every mean, where errors (False) and divergences (True) have fixed ones."""
        return [weight * fixed.get(is_kl, 0.0) for _, is_kl, weight in self.layout]


class Objective(nn.Module):
    """Balances the terms of a model's branches into one loss and moves its own state after each step.

    The state lives in persistent float32 buffers, one entry per branch, so that weights, checkpoints and
    importers carry it. `forward` only reads it; `update` is called once per optimiser step, after backward.
    """

    branches: tuple[str, ...] = ()
    arguments: dict[str, Any]
    """What the constructor was called with, by name."""

    def __init__(self) -> None:
        super().__init__()
        self._means: tuple[Any, TermMeans] | None = None
        self._constants: dict[Any, Tensor] = {}  # on the device once, instead of with every step

    def plain(self) -> dict[str, Any]:
        """The objective as plain data, in the form that a YAML file has."""
        kind = type(self)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(self.arguments)}

    def bind(self, branches: Sequence[str]) -> None:
        """Names the branches whose terms will come, in order. The model calls this once."""
        self.branches = tuple(branches)

    def state(self) -> dict[str, Tensor]:
        """The state's buffers by name."""
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    def means(self, terms: dict[str, Terms]) -> TermMeans:
        """The mean of every term over the batch; computed once for the same `terms`, until `forget`."""
        if self._means is None or self._means[0] is not terms:
            self._means = (terms, TermMeans.of(terms))
        return self._means[1]

    def forget(self) -> None:
        """Lets go of the terms that `means` saw, and with them of the graph behind them."""
        self._means = None

    def weighted_sum(
        self, terms: dict[str, Terms], error_weight: Tensor | float, kl_weight: Tensor | float
    ) -> Tensor:
        """`Σ_branches Σ_steps weight (error_weight mean nll + kl_weight mean KL)`, a scalar.

        Args:
            terms: of every branch, by name.
            error_weight: weight of the errors, of each branch `[branches]` or of all.
            kl_weight: weight of the divergences, likewise.
        """
        means = self.means(terms)
        weights = {False: error_weight, True: kl_weight}
        fixed = {kind: weight for kind, weight in weights.items() if not isinstance(weight, Tensor)}
        with full_precision(means.values):
            coefficients = self._constant(means, fixed)
            for kind, weight in weights.items():
                if isinstance(weight, Tensor):
                    coefficients = torch.addmv(coefficients, self._constant(means, kind), weight)
            return torch.dot(coefficients, means.values)

    def _constant(self, means: TermMeans, what: bool | dict[bool, float]) -> Tensor:
        """By which weights count for which means `[R, branches]`; or what fixed weights come to, `[R]`."""
        key = (means.layout, str(what), means.values.device, means.values.dtype)
        if key not in self._constants:
            numbers = means.share(what) if isinstance(what, bool) else means.coefficients(what)
            self._constants[key] = torch.tensor(numbers, device=key[2], dtype=key[3])
        return self._constants[key]

    def share(self, errors: Tensor) -> None:
        """Takes the mean over ranks of what `forward` has seen: errors summed over micro-batches."""

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

    def restart(self) -> None:
        """Drops what `forward` has summed up for `update`, which no checkpoint holds; training starts so."""

    def log_values(self) -> dict[str, Tensor]:
        """What to log of the state, scalars by name."""
        return {}


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
