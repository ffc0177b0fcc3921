"""SRI and EfficientMORL against the published ones written out (tests/reference/published_sri.py)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.interop.emorl import emorl_state
from lightning_genesis.interop.sri import sri_key
from lightning_genesis.objectives import FixedBeta
from tests.models import emorl_fixture, sri_fixture
from tests.quick import few
from tests.reference import published_sri
from tests.reference.cases import Case, Values, plant
from tests.reference.emorl import official_state
from tests.reference.float64 import double_precision
from tests.reference.slot_attention import SineNoise, fixture_images
from tests.reference.sri import FixtureNoise, official_keys
from tests.reference.sri import fixture_images as sri_images


def sri(num_slots: int = 3) -> Case:
    def found(model: Any, batch: Tensor) -> Values:
        scene = model(batch, FixtureNoise())
        terms = model.loss_terms(scene, batch)
        latents = scene.latents
        values = {"mean": latents["mean"], "scale": latents["scale"], "order": latents["order"]}
        values |= {"scene mean": latents["scene_mean"], "scene scale": latents["scene_scale"]}
        values |= {"components": scene.components, "masks": scene.masks}
        values["error of segregation"] = terms["segregation"].nll
        values["kl of segregation"] = terms["segregation"].kl["latent"]
        kl = terms["sri"].kl
        values |= {"error": terms["sri"].nll, "scene kl": kl["scene"], "slot kl": kl["slot"]}
        values["cross-order kl"] = kl["cross_order"]
        loss = torch.stack([(term.nll + term.total_kl).mean() for term in terms.values()]).sum()
        return values | {"loss": loss}

    def state() -> Values:
        with double_precision():
            own = sri_fixture.fixture_model(num_slots).state_dict()
        return {key: own[sri_key(key)] for key in official_keys()}

    return Case(
        lambda: sri_fixture.fixture_model(num_slots),
        found,
        state,
        lambda gradients: {sri_key(key): value for key, value in gradients.items()},
        lambda w, x: published_sri.sri(w, x, FixtureNoise(), num_slots),
        sri_images(64),
        gradient=0.05,  # weights and images of few values put many ReLUs close to 0: a rounding flips some
    )


def emorl(options: dict[str, Any], image_size: int) -> Case:
    options = {**options, "image_size": image_size}
    mixture, std = options.get("likelihood", "mixture") == "mixture", options.get("std", 0.1)
    decoder, latent_dim = options.get("decoder", "iodine"), options.get("latent_dim", 64)

    def found(model: Any, batch: Tensor) -> Values:
        scene = model(batch, SineNoise())
        latents = scene.latents
        values = {"mean": latents["mean"], "scale": latents["scale"], "components": scene.components}
        values |= {"masks": scene.masks, "error": latents["nll"][:, -1], "kl": latents["kl"][:, -1]}
        values["attention masks"] = scene.attention_log_masks.exp()
        return values | {"loss": model.objective(model.loss_terms(scene, batch), batch[0].numel())}

    def renamed(gradients: Values) -> Values:
        """`emorl_state` only rearranges, but in float32: what is left over goes through once more."""
        rounded = {key: value.float() for key, value in gradients.items()}
        rest = {key: value - rounded[key] for key, value in gradients.items()}
        parts = [emorl_state({k: v.numpy() for k, v in part.items()}) for part in (rounded, rest)]
        return {name: parts[0][name].double() + parts[1][name].double() for name in parts[0]}

    return Case(
        lambda: emorl_fixture.fixture_model(options, FixedBeta()),
        found,
        lambda: {
            key: value.double()
            for key, value in official_state(decoder, latent_dim).items()
            if not key.startswith("geco")
        },
        renamed,
        lambda w, x: published_sri.emorl(
            w, x, SineNoise(), options["num_slots"], options["num_refinements"], mixture, std
        ),
        fixture_images(image_size),
    )


CASES = {
    "SRI": sri(),
    "EfficientMORL, Tetrominoes": emorl(emorl_fixture.TETROMINOES, 20),
    "EfficientMORL, CLEVR6": emorl({**emorl_fixture.CLEVR6, "num_slots": 3}, 16),
}


@pytest.mark.parametrize("name", CASES)
def test_float64(name: str) -> None:
    CASES[name].check(double=True)


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str) -> None:
    CASES[name].check(double=False)


@pytest.mark.parametrize(("double", "share"), [(False, 1e-3), (True, 1e-6)])
@pytest.mark.parametrize(
    ("name", "layer"),
    few(
        [
            ("SRI", "segregation.network.backbone.up.2"),
            ("SRI", "scene_encoder.blocks.1.mlp"),
            ("SRI", "decoder.layers.6"),
            ("EfficientMORL, Tetrominoes", "network.pixel_mlp"),
            ("EfficientMORL, Tetrominoes", "network.refinement.encoding"),
            ("EfficientMORL, CLEVR6", "network.decoder.layers.4"),
        ],
        ("SRI", "scene_encoder.blocks.1.mlp"),
        ("EfficientMORL, CLEVR6", "network.decoder.layers.4"),
    ),
)
def test_planted_error_is_seen(name: str, layer: str, double: bool, share: float) -> None:
    """1e-3 of a tensor's size in float32, 1e-6 in float64, by the values or by the gradients."""
    with pytest.raises(AssertionError, match="of the tensor's size"):
        CASES[name].check(double, plant(layer, share))
