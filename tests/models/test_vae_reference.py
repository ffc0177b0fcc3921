"""The published VAEs' own numbers (specification §9.6, §12.5, §12.7)."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_genesis.models import VAE
from lightning_genesis.models.vae import DecoderName
from tests.compare import GRADIENT, TOTAL, assert_near, statistics
from tests.models.vae_fixture import Step, fixture_model, training_step
from tests.reference import FixtureNoise

EXPECTED: dict[str, dict[str, Any]] = {
    "deconv": {
        "features": [-0.00569478, 0.0296951],
        "err": [7964.61, 7971.97],
        "mean": [0.508428, 0.508428],
        "pixel": [0.509862, 0.516281, 0.499967],
        "loss": 7968.69,
        "norm": 53.7803,
        "sample_mean": [0.508428, 0.508428],
        "sample_pixel": [0.508997, 0.515561, 0.500271],
    },
    "broadcast": {
        "features": [0.120923, 0.439936],
        "err": [8053.53, 8041.16],
        "mean": [0.523223, 0.462526],
        "pixel": [0.5962, 0.562082, 0.416339],
        "loss": 8047.75,
        "norm": 4001.53,
        "sample_mean": [0.522991, 0.463352],
        "sample_pixel": [0.515127, 0.365748, 0.508236],
    },
}


@pytest.fixture(scope="module", params=["deconv", "broadcast"])
def step(request: pytest.FixtureRequest) -> Iterator[tuple[Step, dict[str, Tensor], dict[str, Any]]]:
    """A step, what went into the last convolution and came out of other parts, and what is expected."""
    model = fixture_model(request.param)
    seen: dict[str, Tensor] = {}
    network: Any = model.network
    parts = {"encoder": network.encoder}
    if request.param == "broadcast":
        parts["broadcast"] = network.decoder.broadcast
    handles = [
        part.register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output.detach().clone()})
        )
        for name, part in parts.items()
    ]
    handles.append(
        network.decoder.output.register_forward_pre_hook(
            lambda _, inputs: seen.update({"features": inputs[0].detach().clone()})
        )
    )
    yield training_step(model), seen, EXPECTED[request.param]
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("image_size", "decoder", "expected"),
    [
        (32, "deconv", 3_684_771),
        (64, "deconv", 11_549_091),
        (128, "deconv", 11_549_091),
        (256, "deconv", 11_549_091),
        (32, "broadcast", 2_852_291),
        (64, "broadcast", 9_143_747),
        (128, "broadcast", 9_143_747),
        (256, "broadcast", 9_143_747),
    ],
)
def test_number_of_parameters(image_size: int, decoder: DecoderName, expected: int) -> None:
    model = VAE(image_size=image_size, decoder=decoder)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_encoder(step: tuple[Step, dict[str, Tensor], dict[str, Any]]) -> None:
    taken, seen, _ = step
    assert_near(statistics(seen["encoder"]), [-0.00361351, 0.0328645])
    assert_near(statistics(taken.scene.latents["mean"]), [0.00410947, 0.063282])
    assert_near(taken.scene.latents["scale"].square().mean(), 0.95564)


def test_decoder(step: tuple[Step, dict[str, Tensor], dict[str, Any]]) -> None:
    _, seen, expected = step
    assert_near(statistics(seen["features"]), expected["features"])
    if "broadcast" in seen:
        assert_near(statistics(seen["broadcast"]), [0.0865147, 0.487794])
        assert torch.equal(F.elu(seen["broadcast"]), seen["features"])


def test_terms(step: tuple[Step, dict[str, Tensor], dict[str, Any]]) -> None:
    taken, _, expected = step
    assert_near(taken.terms.nll, expected["err"], TOTAL)
    assert_near(taken.terms.kl["latent"], [0.316127, 0.490443])
    assert_near(taken.scene.reconstruction.mean(dim=(1, 2, 3)), expected["mean"])
    assert_near(taken.scene.reconstruction[0, :, 10, 20], expected["pixel"])


def test_gradients(step: tuple[Step, dict[str, Tensor], dict[str, Any]]) -> None:
    taken, _, expected = step
    assert_near(taken.loss, expected["loss"], TOTAL)
    assert_near(taken.gradient_norm, expected["norm"], GRADIENT)


@pytest.mark.parametrize("decoder", ["deconv", "broadcast"])
def test_sample(decoder: DecoderName) -> None:
    picture = fixture_model(decoder).eval().sample(2, noise=FixtureNoise()).reconstruction
    assert_near(picture.mean(dim=(1, 2, 3)), EXPECTED[decoder]["sample_mean"])
    assert_near(picture[1, :, 5, 50], EXPECTED[decoder]["sample_pixel"])


@pytest.mark.parametrize(
    ("image_size", "decoder", "err", "loss", "norm"),
    [
        (32, "deconv", [1997.97, 1986.43], 1992.83, 25.3747),
        (128, "deconv", [31843.9, 31803.4], 31824.0, 204.509),
        (32, "broadcast", [2019.17, 2000.73], 2010.58, 922.009),
        (128, "broadcast", [32199.6, 32064.7], 32132.6, 15822.4),
    ],
)
def test_other_sizes(
    image_size: int, decoder: DecoderName, err: list[float], loss: float, norm: float
) -> None:
    found = training_step(fixture_model(decoder, image_size))
    assert_near(found.terms.nll, err, TOTAL)
    assert_near(found.loss, loss, TOTAL)
    assert_near(found.gradient_norm, norm, GRADIENT)
