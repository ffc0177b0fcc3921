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
        one_slot: the model can do with a single slot.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-6
    mixing: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ()
    double: bool = False
    one_slot: bool = True


TINY: dict[str, Tiny] = {
    "GenesisV2": Tiny(
        {"feature_dim": 16, "latent_dim": 8},
        variants=(
            {"autoregressive_prior": False},
            {"semi_convolutional": False},
            {
                "mask_consistency": True,
                "mask_consistency_start": "goal",
                "objective": {
                    "class_path": "lightning_genesis.objectives.self_setting_geco.SelfSettingGECO",
                    "init_args": {"warmup_steps": 2, "tolerance": 0.1},
                },
            },
        ),
    ),
    "Genesis": Tiny(
        {"mask_dim": 8, "component_dim": 8, "feature_dim": 8, "norm": "instance"},
        mixing={"norm": "batch"},
        variants=({"autoregressive_prior": False}, {"component_prior": False}, {"two_stage": False}),
    ),
    # Instance normalisation of nearly constant maps: in float32, 2e-3 of the largest gradient after 50 steps.
    "MONet": Tiny({"latent_dim": 8, "feature_dim": 8}, double=True),
    "VAE": Tiny({"latent_dim": 8}),
    "SRI": Tiny(
        {"encoder_options": {"feature_dim": 16, "latent_dim": 8}, "scene_dim": 16, "hidden_dim": 16},
        variants=(
            {"scene_dim": None},
            {"order": "none", "cross_order_kl": False, "autoregressive_posterior": False},
            {"shared_decoder": True, "segregation_loss": False},
            {
                "encoder": "emorl",
                "encoder_options": {
                    "latent_dim": 8,
                    "feature_dim": 8,
                    "decoder_dim": 8,
                    "num_refinements": 1,
                },
            },
        ),
    ),
    "EfficientMORL": Tiny(
        {
            "latent_dim": 8,
            "feature_dim": 8,
            "decoder": "big",
            "decoder_dim": 8,
            "decoder_stages": 2,
            "num_refinements": 2,
            "curriculum_steps": 3,
            "warmup_steps": 1,
            "objective": {
                "class_path": "lightning_genesis.objectives.softplus_geco.SoftplusGECO",
                "init_args": {"warmup_steps": 2},
            },
        },
        variants=({"num_layers": 1}, {"prior": "bottom_up"}),
    ),
    "SceneGenesis": Tiny(
        {"mask_dim": 8, "component_dim": 8, "feature_dim": 8, "norm": "instance", "scene_dim": 16},
        one_slot=False,
    ),
    "SceneGenesisV2": Tiny({"feature_dim": 16, "latent_dim": 8, "scene_dim": 16}),
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
        variants=({"learned_queries": True, "implicit_gradient": True},),
    ),
}


def tiny(name: str) -> Tiny:
    """How a model is made small."""
    return TINY.get(name, Tiny())
