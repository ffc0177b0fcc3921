"""The component VAE: what its split first convolution and its folded slots must be equal to."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.counting import count_operations
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers import ComponentVAE


def inputs(batch: int = 2, num_slots: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(batch, num_slots, 1, size, size, generator=generator)
    return torch.rand(batch, 3, size, size, generator=generator), logits.log_softmax(dim=1)


def encode_slot_by_slot(vae: ComponentVAE, images: Tensor, log_masks: Tensor) -> tuple[Tensor, Tensor]:
    """The network as the paper has it: one slot at a time, `(log m_k, x)` through all layers."""
    raw = torch.stack([vae.encoder(torch.cat([m, images], dim=1)) for m in log_masks.unbind(dim=1)], dim=1)
    mean, scale = raw.split(raw.shape[2] // 2, dim=2)
    return mean, (scale + 0.5).exp().log1p() + 1e-8


@pytest.mark.parametrize("activation", [nn.ELU, nn.ReLU])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_encoder_is_that_of_every_slot(activation: Any, size: int) -> None:
    torch.manual_seed(0)
    vae = ComponentVAE(5, 3, size, activation)
    images, log_masks = inputs(size=size)
    for found, expected in zip(
        vae.encode(images, log_masks), encode_slot_by_slot(vae, images, log_masks), strict=True
    ):
        assert found.shape == (2, 3, 5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_the_joint_convolution() -> None:
    torch.manual_seed(0)
    vae = ComponentVAE(5, 3, 32).double()
    images, log_masks = (x.double().requires_grad_() for x in inputs())
    leaves = [images, log_masks, *vae.encoder.parameters()]
    weight = torch.randn(2, 3, 5, dtype=torch.float64)
    # float64 runs through `encode` in float32 from the last layer on, hence the tolerance
    found = torch.autograd.grad((vae.encode(images, log_masks)[0] * weight).sum(), leaves, allow_unused=True)
    expected = torch.autograd.grad(
        (encode_slot_by_slot(vae, images, log_masks)[0] * weight).sum(), leaves, allow_unused=True
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_log_mask_is_the_first_channel_and_enters_as_it_is() -> None:
    vae = ComponentVAE(4, 3, 32)
    images, log_masks = inputs()
    with torch.no_grad():
        first = vae.encoder[0]
        assert isinstance(first, nn.Conv2d)
        first.weight[:, 1:] = 0.0
    mean, _ = vae.encode(images, log_masks)
    torch.testing.assert_close(vae.encode(images.flip(0), log_masks)[0], mean)
    assert not torch.allclose(vae.encode(images, 2.0 * log_masks)[0], mean)


def test_decoder_keeps_slots_apart() -> None:
    vae = ComponentVAE(4, 6, 32)
    latents = torch.randn(2, 3, 4)
    output = vae.decode(latents)
    assert output.shape == (2, 3, 6, 32, 32)
    torch.testing.assert_close(vae.decode(latents[1:, 2:])[0, 0], output[1, 2])


def test_image_is_convolved_once_whatever_the_number_of_slots() -> None:
    vae = ComponentVAE(4, 3, 32)
    flops = []
    for num_slots in (1, 2, 3):
        with count_operations() as counts, torch.no_grad():
            vae.encode(*inputs(num_slots=num_slots))
        flops.append(counts.flops)
    per_slot = flops[1] - flops[0]
    assert flops[2] - flops[1] == per_slot
    # what one slot does not cost again: the three image channels of 32 filters of 3x3 on 16x16 pixels
    assert flops[0] - per_slot == 2 * (2 * 3 * 32 * 9 * 16**2)


@pytest.mark.parametrize(("latent_dim", "hidden"), [(16, 256), (200, 400)])
def test_hidden_layer(latent_dim: int, hidden: int) -> None:
    linear = [layer for layer in ComponentVAE(latent_dim, 3, 32).encoder if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (256, hidden),
        (hidden, 2 * latent_dim),
    ]


def test_autocast_leaves_results_in_float32() -> None:
    vae = ComponentVAE(4, 3, 32)
    images, log_masks = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, scale = vae.encode(images, log_masks)
        output = vae.decode(mean)
    assert mean.dtype == scale.dtype == output.dtype == torch.float32
    expected = vae.encode(images, log_masks)[0]
    torch.testing.assert_close(mean, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("size", [0, 8, 40, -16])
def test_sizes_that_do_not_fit(size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"image_size={size} does not fit.*multiple of 16") as raised:
        ComponentVAE(4, 3, size)
    assert "\n" not in str(raised.value)


def test_latent_that_does_not_fit() -> None:
    with pytest.raises(ConfigurationError, match="latent_dim=0"):
        ComponentVAE(0, 3, 32)
