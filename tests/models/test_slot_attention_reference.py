"""Numbers of the published implementations of Slot Attention (specification §12, §13)."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from lightning_genesis.interop.slot_attention import slot_attention_key, tensorflow_state
from lightning_genesis.models import SlotAttention
from lightning_genesis.scene import Scene
from tests.compare import DOUBLE, TOTAL, assert_all_near, assert_near
from tests.models.v2_fixture import gradient
from tests.reference.float64 import double_precision
from tests.reference.slot_attention import (
    SineNoise,
    emorl_keys,
    fixture_images,
    fixture_parameter,
    official_forward,
    tensorflow_shapes,
)

CLEVR6: dict[str, Any] = {"num_slots": 7, "image_size": 96, "implementation": "emorl"}
SMALL: dict[str, Any] = {"implementation": "emorl", "decoder": "small", "decoder_dim": 32}
DSPRITES: dict[str, Any] = {"num_slots": 6, "image_size": 64, **SMALL}
TETROMINOES: dict[str, Any] = {"num_slots": 4, "image_size": 35, "slot_dim": 32, **SMALL}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_slots": 7, "image_size": 128}, 890_308),
        (CLEVR6, 890_180),
        (DSPRITES, 479_204),
        (TETROMINOES, 419_236),
    ],
)
def test_number_of_parameters(options: dict[str, Any], expected: int) -> None:
    assert sum(p.numel() for p in SlotAttention(**options).parameters()) == expected


# ---------------------------------------------------------------- EMORL's repository


def emorl_fixture(options: dict[str, Any]) -> SlotAttention:
    model = SlotAttention(**options)
    parameters = dict(model.named_parameters())
    keys = emorl_keys(options.get("decoder", "big"))
    ours = [slot_attention_key(key) for key in keys]
    assert set(ours) == set(parameters)
    with torch.no_grad():
        for position, (key, name) in enumerate(zip(keys, ours, strict=True)):
            parameters[name].copy_(fixture_parameter(position, key, parameters[name]))
    return model


@pytest.mark.parametrize(
    ("options", "loss", "first"),
    [
        (TETROMINOES, 460.5704, [0.05299591, -0.01834192, 0.08398454, -0.007237088]),
        (
            CLEVR6,
            3587.555,
            [0.2560465, 0.2610105, 0.197745, 0.2066239, 0.2498697, 0.2691355, 0.2023968],
        ),
    ],
)
@torch.no_grad()
def test_emorl_reference(options: dict[str, Any], loss: float, first: list[float]) -> None:
    model = emorl_fixture(options)
    images = fixture_images(options["image_size"])
    scene = model(images, SineNoise())
    terms = model.loss_terms(scene, images)["slot_attention"]
    assert_near(terms.nll.mean(), loss, TOTAL)
    assert_near(scene.latents["slots"][0, :, 0], first)


# ---------------------------------------------------------------- the official model

SLOPE = 1e-8
"""Central differences with steps of 1e-6 lose half of float64's digits."""
WIDTHS = {"feature": 6, "slot": 5, "hidden": 7, "decoder": 4, "stages": 1}
OFFICIAL: dict[str, Any] = {
    "num_slots": 3,
    "image_size": 8,
    "feature_dim": 6,
    "slot_dim": 5,
    "mlp_dim": 7,
    "decoder_dim": 4,
    "decoder_stages": 1,
}


class Official:
    """A tiny official model, its images and its noise."""

    def __init__(self, halvings: int = 0, stages: int = 1, double: bool = False) -> None:
        """With images in float64 if `double`; the weights are rounded to float32 in any case."""
        generator = np.random.default_rng(0)
        shapes = tensorflow_shapes(**{**WIDTHS, "stages": stages})
        drawn = {name: generator.normal(0.0, 0.4, shape) for name, shape in shapes.items()}
        self.variables = {name: value.astype(np.float32).astype(np.float64) for name, value in drawn.items()}
        self.halvings, self.stages = halvings, stages
        images = generator.uniform(0.0, 1.0, (2, 8, 8, 3)).astype(np.float32)
        self.images = images.astype(np.float64) if double else images
        self.noise = generator.normal(size=(2, 3, 5)).astype(np.float32)

    def forward(self, **changed: np.ndarray) -> dict[str, np.ndarray]:
        images = 2.0 * self.images.astype(np.float64) - 1.0
        variables = {**self.variables, **changed}
        return official_forward(variables, images, self.noise, self.stages, 3, self.halvings)

    def normal(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        assert shape == self.noise.shape
        return torch.from_numpy(self.noise).to(like)

    uniform = normal

    def ours(self) -> tuple[SlotAttention, torch.Tensor]:
        options = {**OFFICIAL, "encoder_stages": self.halvings, "decoder_stages": self.stages}
        model = SlotAttention(**options)
        state = {k: v for k, v in model.state_dict().items() if k.startswith("network.")}
        imported = tensorflow_state(self.variables)
        assert set(imported) == set(state)
        model.load_state_dict(imported, strict=False)
        return model, torch.from_numpy(self.images).permute(0, 3, 1, 2)


def assert_official(official: Official, scene: Scene, nll: torch.Tensor, double: bool) -> None:
    """Everything that the official model gives, of our scene."""
    expected = official.forward()
    found = {
        "slots": scene.latents["slots"],
        "components": 2.0 * scene.components.permute(0, 1, 3, 4, 2) - 1.0,
        "masks": scene.masks.permute(0, 1, 3, 4, 2),
        "loss": nll,
    }
    if official.halvings == 0:
        assert scene.attention_log_masks is not None
        found["attention"] = scene.attention_log_masks.exp().flatten(2).transpose(1, 2)
    common = {name: expected[name] for name in found}
    assert_all_near(found, common, DOUBLE if double else {"loss": TOTAL})


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("halvings", "stages"), [(0, 1), (1, 2), (2, 1), (3, 0)])
@torch.no_grad()
def test_official_model_with_tensorflow_conventions(halvings: int, stages: int, double: bool) -> None:
    official = Official(halvings, stages, double)
    with double_precision() if double else nullcontext():
        model, images = official.ours()
        scene: Scene = model(images, official)
        terms = model.loss_terms(scene, images)["slot_attention"]
    assert_official(official, scene, terms.nll, double)


def test_gradient_of_every_variable() -> None:
    """Against central differences of the official model in float64, along a random direction each."""
    official = Official(double=True)
    with double_precision():
        model, images = official.ours()
        terms = model.loss_terms(model(images, official), images)["slot_attention"]
        terms.nll.mean().backward()
    gradients = {name: gradient(p) for name, p in model.named_parameters()}
    generator = np.random.default_rng(1)
    slopes, expected = [], []
    for name, value in official.variables.items():
        direction = generator.normal(size=value.shape)
        zeros = {other: np.zeros_like(v) for other, v in official.variables.items()}
        direction = direction.astype(np.float32).astype(np.float64)
        ours = tensorflow_state({**zeros, name: direction})
        slopes.append(math.fsum((gradients[k] * v.double()).sum().item() for k, v in ours.items()))
        up, down = (official.forward(**{name: value + h * direction})["loss"] for h in (1e-6, -1e-6))
        expected.append((up - down).mean() / 2e-6)
    assert_near(slopes, expected, SLOPE)
    # The same shift of all queries changes no softmax over slots; everything else matters.
    flat = {name for name, slope in zip(official.variables, expected, strict=True) if abs(slope) < 1e-5}
    assert flat == {"slot_attention/norm_slots/beta"}
