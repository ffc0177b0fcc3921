"""Models against the published ones written out (tests/reference/published.py): all values, all gradients.

In float64 they agree to `DOUBLE`, in float32 to the other bounds of `tests.compare`. Errors planted in one
layer show that both see what they should.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_genesis.interop.genesis import genesis_key
from lightning_genesis.interop.genesis_v2 import genesis_v2_key
from lightning_genesis.interop.monet import monet_key
from lightning_genesis.interop.vae import vae_key
from lightning_genesis.objectives import gaussian_kl, mask_kl, sampled_gaussian_kl
from tests.models import genesis_fixture, monet_fixture, v2_fixture, vae_fixture
from tests.quick import few
from tests.reference import FixtureNoise, fixture_parameter, images, published
from tests.reference import genesis as genesis_names
from tests.reference import genesis_v2 as v2_names
from tests.reference import monet as monet_names
from tests.reference import vae as vae_names
from tests.reference.cases import Case, Values, plant
from tests.reference.float64 import double_precision

KINDS = ("mask", "component")
"""Of GENESIS's latents; GENESIS-S has the first alone."""


def case(
    model: Callable[[], nn.Module],
    found: Callable[[Any, Tensor], Values],
    keys: list[str],
    rename: Callable[[str], str],
    expected: Callable[[Values, Tensor], Values],
    image_size: int = 32,
) -> Case:
    """One whose parameters have other names than the official ones, and nothing else."""

    def state() -> Values:
        with double_precision():
            own = model().state_dict()
        filled = {key: fixture_parameter(key, own[rename(key)]) for key in keys}
        return {key: value for key, value in filled.items() if value.is_floating_point()}

    def renamed(gradients: Values) -> Values:
        return {rename(key): value for key, value in gradients.items()}

    return Case(model, found, state, renamed, expected, images(image_size))


def genesis_v2(num_slots: int = 4, image_size: int = 32, **options: Any) -> Case:
    def found(model: Any, batch: Tensor) -> Values:
        scene = model(batch, FixtureNoise())
        terms = model.loss_terms(scene, batch)["genesis_v2"]
        latents = scene.latents
        kl = sampled_gaussian_kl(
            latents["sample"], latents["mean"], latents["scale"], *model.prior(latents["sample"])
        )
        attention, decoded = scene.attention_log_masks, scene.log_masks
        values = {"attention masks": attention.exp(), "mean": latents["mean"], "scale": latents["scale"]}
        values |= {"components": scene.components, "masks": decoded.exp(), "error": terms.nll, "kl": kl}
        return values | {"mask kl": mask_kl(attention, decoded), "loss": (terms.nll + terms.total_kl).mean()}

    names = {32: 4, 64: 5}[image_size], options.get("semi_convolutional", True)
    both = "both" if not options.get("detach_decoded_masks", True) else "attention"
    consistency = both if options.get("mask_consistency") else ""
    kernel = options.get("kernel", "gaussian")
    return case(
        lambda: v2_fixture.fixture_model(num_slots, image_size, **options),
        found,
        v2_names.official_keys(*names, options.get("autoregressive_prior", True)),
        genesis_v2_key,
        lambda w, x: published.genesis_v2(w, x, FixtureNoise(), num_slots, kernel, consistency=consistency),
        image_size,
    )


def genesis(num_slots: int = 3, image_size: int = 32, training: bool = True, **options: Any) -> Case:
    def found(model: Any, batch: Tensor) -> Values:
        scene = model(batch, genesis_fixture.ForwardNoise())
        terms = model.loss_terms(scene, batch)["genesis"]
        values = {"masks": scene.masks, "components": scene.components, "error": terms.nll}
        mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
        parts = [by_kind(x, model.network.dims) for x in (sample, mean, scale, *model.prior(sample))]
        for kind in parts[0]:
            values |= {f"{kind} mean": parts[1][kind], f"{kind} scale": parts[2][kind]}
            values[f"{kind} kl"] = sampled_gaussian_kl(*(part[kind] for part in parts))
        return values | {"loss": (terms.nll + terms.total_kl).mean()}

    keys = genesis_names.official_keys(
        two_stage=options.get("two_stage", True),
        symmetric=options.get("symmetric_components", False),
        component_prior=options.get("component_prior", True),
        autoregressive=options.get("autoregressive_prior", True),
        norm=options.get("norm", "batch"),
    )
    norm = options.get("norm", "batch")
    return case(
        lambda: genesis_fixture.fixture_model(num_slots, image_size, **options).train(training),
        found,
        keys,
        genesis_key,
        lambda w, x: published.genesis(w, x, genesis_fixture.ForwardNoise(), num_slots, norm, training),
        image_size,
    )


def by_kind(values: Tensor, dims: tuple[int, int]) -> Values:
    return {kind: part for kind, part in zip(KINDS, values.split(dims, dim=2), strict=True) if part.shape[2]}


def monet(num_slots: int = 4, image_size: int = 32, **options: Any) -> Case:
    scope, analytic = options.get("mask_prior") == "scope", options.get("analytic_kl", False)
    deviations = options.get("std", 0.7), options.get("background_std", 0.7)

    def found(model: Any, batch: Tensor) -> Values:
        scene = model(batch, monet_names.SlotMajorNoise())
        terms = model.loss_terms(scene, batch)["monet"]
        mean, scale, sample = (scene.latents[name] for name in ("mean", "scale", "sample"))
        prior = torch.zeros_like(mean), torch.ones_like(mean)
        kl = (
            gaussian_kl(mean, scale, *prior) if analytic else sampled_gaussian_kl(sample, mean, scale, *prior)
        )
        values = {"masks": scene.masks, "decoded masks": scene.log_masks_of("decoded").exp(), "mean": mean}
        values |= {"scale": scale, "components": scene.components, "error": terms.nll, "kl": kl}
        return values | {"mask kl": terms.kl["mask"], "loss": (terms.nll + terms.total_kl).mean()}

    return case(
        lambda: monet_fixture.fixture_model(num_slots, image_size, **options),
        found,
        monet_names.official_keys({32: 4, 64: 5}[image_size]),
        monet_key,
        lambda w, x: published.monet(
            w, x, monet_names.SlotMajorNoise(), num_slots, scope, analytic, *deviations
        ),
        image_size,
    )


def vae(decoder: Any, image_size: int = 32) -> Case:
    def found(model: Any, batch: Tensor) -> Values:
        scene = model(batch, FixtureNoise())
        terms = model.loss_terms(scene, batch)["vae"]
        mean, scale = (scene.latents[name].squeeze(1) for name in ("mean", "scale"))
        values = {"mean": mean, "scale": scale, "reconstruction": scene.reconstruction}
        values |= {"error": terms.nll, "kl": terms.kl["latent"]}
        return values | {"loss": (terms.nll + terms.total_kl).mean()}

    return case(
        lambda: vae_fixture.fixture_model(decoder, image_size),
        found,
        vae_names.official_keys(decoder),
        vae_key,
        lambda w, x: published.vae(w, x, FixtureNoise()),
        image_size,
    )


CASES = {
    "GENESIS-V2": genesis_v2(),
    "GENESIS-V2, laplacian": genesis_v2(kernel="laplacian"),
    "GENESIS-V2, epanechnikov": genesis_v2(kernel="epanechnikov"),
    "GENESIS-V2, mask consistency": genesis_v2(mask_consistency=True),
    "GENESIS-V2, both masks trained": genesis_v2(mask_consistency=True, detach_decoded_masks=False),
    "GENESIS-V2, no coordinates, no prior": genesis_v2(semi_convolutional=False, autoregressive_prior=False),
    "GENESIS": genesis(),
    "GENESIS, evaluation": genesis(training=False),
    "GENESIS, symmetric": genesis(symmetric_components=True),
    "GENESIS, instance norm, no priors": genesis(
        norm="instance", component_prior=False, autoregressive_prior=False
    ),
    "GENESIS-S": genesis(two_stage=False),
    "MONet": monet(),
    "MONet, original": monet(mask_prior="scope", analytic_kl=True, std=0.11, background_std=0.09),
    "DC-VAE": vae("deconv"),
    "BD-VAE": vae("broadcast"),
}


SLOW = (
    "GENESIS-V2, epanechnikov",
    "GENESIS-V2, mask consistency",
    "GENESIS, evaluation",
    "GENESIS, instance norm, no priors",
)
"""What is one line of the model each, which the other cases and `test_*_reference.py` come by."""


@pytest.mark.parametrize("name", few(CASES, *(name for name in CASES if name not in SLOW)))
def test_float64(name: str) -> None:
    CASES[name].check(double=True)


@pytest.mark.parametrize("name", ["GENESIS-V2", "GENESIS", "GENESIS-S", "MONet", "DC-VAE", "BD-VAE"])
def test_float32(name: str) -> None:
    CASES[name].check(double=False)


# ---------------------------------------------------------------- errors planted in one layer

PLANTED = [
    ("GENESIS-V2", "network.backbone.down.1"),
    ("GENESIS-V2", "network.posterior_head.1"),
    ("GENESIS-V2", "network.decoder.layers.3"),
    ("GENESIS", "network.mask_vae.encoder.layers.2"),
    ("GENESIS", "network.component_vae.decoder.layers.4"),
    ("MONet", "network.component_vae.encoder.4"),
    ("BD-VAE", "network.encoder.layers.3"),
]


@pytest.mark.parametrize(("double", "share"), [(False, 1e-3), (True, 1e-6)])
@pytest.mark.parametrize(("name", "layer"), few(PLANTED, *PLANTED[::2]))
def test_planted_error_is_seen(name: str, layer: str, double: bool, share: float) -> None:
    """1e-3 of a tensor's size in float32, 1e-6 in float64, by the values or by the gradients."""
    with pytest.raises(AssertionError, match="of the tensor's size"):
        CASES[name].check(double, plant(layer, share))
