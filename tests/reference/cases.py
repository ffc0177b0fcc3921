"""A model beside the published one written out: the same weights, images and noise in float32 or float64."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.compare import DOUBLE, GRADIENT, TOTAL, assert_all_near
from tests.reference.float64 import double_precision

Values = dict[str, Tensor]
BOUNDS = {"error": TOTAL, "error of segregation": TOTAL, "loss": TOTAL}
"""In float32; everything else has `FORWARD`."""


@dataclass
class Case:
    """A model, what it finds, and the published one."""

    model: Callable[[], nn.Module]
    """Ours with the fixture's weights, in the default dtype."""
    found: Callable[[Any, Tensor], Values]
    """Of images: values by name, of which "loss" is differentiated."""
    state: Callable[[], Values]
    """The fixture in float64 by official names."""
    renamed: Callable[[Values], Values]
    """Gradients by official names, as ours."""
    expected: Callable[[Values, Tensor], Values]
    """The published model's values of weights and images; may be more than ours."""
    images: Tensor
    """float32 `[B, 3, S, S]`."""
    gradient: float = GRADIENT
    """Bound of the gradient of each parameter in float32."""
    known: tuple[Values, Values] | None = field(default=None, init=False)
    """Values and gradients of the published model, computed once."""

    def published(self) -> tuple[Values, Values]:
        """Values and gradients of the published model in float64."""
        if self.known is None:
            w = {key: value.clone() for key, value in self.state().items()}
            for key, value in w.items():
                value.requires_grad_("running" not in key)
            values = self.expected(w, self.images.double())
            values["loss"].backward()
            gradients = {key: value.grad for key, value in w.items() if value.grad is not None}
            self.known = {name: value.detach() for name, value in values.items()}, self.renamed(gradients)
        return self.known

    def check(self, double: bool, sabotage: Callable[[nn.Module], None] = lambda model: None) -> None:
        """Fails where the model, after `sabotage`, differs from the published one."""
        expected, gradients = self.published()
        with double_precision() if double else nullcontext():
            model = self.model()
            sabotage(model)
            found = self.found(model, self.images.double() if double else self.images)
            found["loss"].backward()
        common = {name: value for name, value in expected.items() if name in found}
        assert_all_near(found, common, DOUBLE if double else BOUNDS)
        trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(gradients.values())).item()
        assert_all_near(
            trained, gradients, DOUBLE if double else self.gradient, 1e-3 * norm, by_norm=not double
        )


def plant(name: str, share: float) -> Callable[[nn.Module], None]:
    """Adds `share` of the largest output, up or down by channel, to what the part `name` of a model gives."""

    def sabotage(model: nn.Module) -> None:
        def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            channels = output.transpose(1, -1) if output.ndim > 3 else output
            signs = torch.arange(channels.shape[-1]).to(output).cos().sign()
            signs = signs.expand_as(channels).transpose(1, -1) if output.ndim > 3 else signs
            return output + share * output.detach().abs().max() * signs

        model.get_submodule(name).register_forward_hook(add)

    return sabotage
