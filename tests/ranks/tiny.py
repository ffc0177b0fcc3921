"""Every model, small: what the tests of several processes run over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_genesis import models

NAMES = tuple(name for name in models.__all__ if name != "SceneModel")


@dataclass(frozen=True)
class Tiny:
    """How a model is made small; one that is not listed below runs with its defaults.

    Args:
        options: of its constructor, besides what the data give.
        learning_rate: of plain gradient descent, such that weights move and the loss stays smooth.
        mixing: options under which the images of a batch depend on each other, so that a global batch gives
            other numbers on several ranks: a named exception.
        variants: further options that leave out a part of the model.
        double: compare in float64, because the model amplifies rounding.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-6
    mixing: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ()
    double: bool = False


TINY: dict[str, Tiny] = {
    "GenesisV2": Tiny(
        {"feature_dim": 16, "latent_dim": 8},
        variants=({"autoregressive_prior": False}, {"semi_convolutional": False}),
    ),
    "Genesis": Tiny(
        {"mask_dim": 8, "component_dim": 8, "norm": "instance"},
        mixing={"norm": "batch"},
        variants=({"autoregressive_prior": False}, {"component_prior": False}, {"two_stage": False}),
    ),
    # Instance normalisation of nearly constant maps: in float32, 2e-3 of the largest gradient after 50 steps.
    "MONet": Tiny({"latent_dim": 8}, double=True),
    "VAE": Tiny({"latent_dim": 8}),
    "SlotAttention": Tiny(
        {
            "slot_dim": 8,
            "feature_dim": 8,
            "mlp_dim": 16,
            "decoder_dim": 8,
            "decoder_stages": 2,
            "warmup_steps": 1,
        },
        learning_rate=1e-2,
    ),
}


def tiny(name: str) -> Tiny:
    """How a model is made small."""
    return TINY.get(name, Tiny())
