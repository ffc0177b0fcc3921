"""The scene encoder against its equations written out pair by pair, and its invariances."""

import math

import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.gaussian import softplus_scale
from lightning_genesis.layers.initial_values import small_xavier
from lightning_genesis.layers.scene_encoder import SequenceEncoder, SetAttention, SetEncoder, scene_to_sample
from tests.reference.sri import FixtureNoise


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """With weights large enough that every part matters."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return module.double()


def slots_of(batch: int, num_slots: int, dim: int = 6) -> Tensor:
    return torch.randn(batch, num_slots, dim, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("num_slots", [1, 2, 5])
@torch.no_grad()
def test_attention_pair_by_pair(num_slots: int) -> None:
    block, x = randomised(SetAttention(6)), slots_of(2, num_slots)
    for image, found in zip(x, block(x), strict=True):
        for i in range(num_slots):
            query = block.query.weight @ image[i]
            scores = torch.stack(
                [query @ (block.key.weight @ image[j]) / math.sqrt(6) for j in range(num_slots)]
            )
            weights = scores.softmax(dim=0)
            values = [block.value(torch.cat([image[i], image[i] - image[j]])) for j in range(num_slots)]
            attended = sum(w * v for w, v in zip(weights, values, strict=True))
            expected = image[i] + block.mlp(block.norm(image[i] + attended))
            torch.testing.assert_close(found[i], expected)


@torch.no_grad()
def test_order_of_the_slots() -> None:
    encoder, x = randomised(SetEncoder(6, 4)), slots_of(3, 5)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(encoder.blocks(x[:, order]), encoder.blocks(x)[:, order])
    torch.testing.assert_close(encoder(x[:, order]), encoder(x))
    sequence = randomised(SequenceEncoder(6, 4, hidden_dim=5))
    assert not torch.allclose(sequence(x[:, order])[0], sequence(x)[0])


@torch.no_grad()
def test_mean_and_scale_of_the_sum() -> None:
    encoder, x = randomised(SetEncoder(6, 4, num_layers=2)), slots_of(3, 5)
    pooled = encoder.projection(encoder.blocks[1](encoder.blocks[0](x)).sum(dim=1))
    mean, scale = encoder(x)
    torch.testing.assert_close(mean, encoder.mean(pooled))
    variance = torch.log1p(encoder.raw_scale(pooled).exp()) + 1e-5
    torch.testing.assert_close(scale.square(), variance)
    latents = encoder.infer(x, FixtureNoise())
    torch.testing.assert_close(latents["scene_sample"], mean + scale * FixtureNoise().normal((3, 4), mean))


def test_initial_values() -> None:
    torch.manual_seed(0)
    layer = small_xavier(torch.nn.Linear(300, 200))
    assert not layer.bias.any()
    assert layer.weight.std().item() == pytest.approx(0.02 * math.sqrt(2 / 500), rel=0.02)
    assert softplus_scale(torch.zeros(1)).item() == pytest.approx(0.8325606, abs=1e-6)
    assert softplus_scale(torch.tensor([80.0])) == softplus_scale(torch.tensor([1e30]))


def test_scene_to_sample() -> None:
    like, given = torch.zeros(()), torch.ones(2, 3, dtype=torch.float64)
    assert scene_to_sample(None, 2, None, 1.0, None, like) is None
    drawn = scene_to_sample(None, 2, 3, 0.5, FixtureNoise(), like)
    assert torch.equal(drawn, 0.5 * FixtureNoise().normal((2, 3), like))  # type: ignore[arg-type]
    taken = scene_to_sample(given, 2, 3, 0.5, None, like)
    assert torch.equal(taken, torch.ones(2, 3))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"has shape \[2, 3\], expected \[2, 4\]"):
        scene_to_sample(given, 2, 4, 1.0, None, like)
    with pytest.raises(ConfigurationError, match="the model has no scene variable; leave it out"):
        scene_to_sample(given, 2, None, 1.0, None, like)
