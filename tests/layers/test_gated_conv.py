"""Gated convolutions, and the encoder, decoder and component VAE made of them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers import GatedComponentVAE, GatedConv, GatedDecoder, GatedEncoder
from lightning_genesis.layers.gated_conv import STRIDES, NormName, gated_strides, posterior_scale


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("transposed", [False, True])
def test_gate_without_norm_is_a_gated_linear_unit(transposed: bool) -> None:
    layer = GatedConv(3, 4, 5, stride=2, padding=2, transposed=transposed)
    x = inputs(2, 3, 8, 8)
    torch.testing.assert_close(layer(x), F.glu(layer.conv(x), dim=1))
    assert layer(x).shape == ((2, 4, 16, 16) if transposed else (2, 4, 4, 4))


@pytest.mark.parametrize(("norm", "axes"), [("batch", (0, 2, 3)), ("instance", (2, 3))])
def test_value_and_gate_are_normalised_apart(norm: NormName, axes: tuple[int, ...]) -> None:
    """Against the definition, in float64; the value has no activation."""
    layer = GatedConv(3, 4, 3, padding=1, norm=norm).double()
    parts: dict[str, Any] = {"value": layer.value_norm, "gate": layer.gate_norm}
    for i, part in enumerate(parts.values()):
        nn.init.uniform_(part.weight, 0.5 + i, 1.0 + i)
        nn.init.uniform_(part.bias, -1.0, 1.0)
    x = inputs(5, 3, 6, 6).double()
    raw = dict(zip(parts, layer.conv(x).split(4, dim=1), strict=True))
    for name, part in parts.items():
        mean = raw[name].mean(axes, keepdim=True)
        variance = (raw[name] - mean).square().mean(axes, keepdim=True)
        normal = (raw[name] - mean) / (variance + 1e-5).sqrt()
        raw[name] = normal * part.weight[:, None, None] + part.bias[:, None, None]
    torch.testing.assert_close(layer(x), raw["value"] / (1.0 + (-raw["gate"]).exp()))


def test_instance_norm_keeps_images_apart() -> None:
    x = inputs(4, 3, 32, 32)
    for norm, apart in (("instance", True), ("batch", False), ("none", True)):
        encoder = GatedEncoder(32, norm)  # type: ignore[arg-type]
        assert torch.allclose(encoder(x)[:2], encoder(x[:2]), rtol=1e-4, atol=1e-5) == apart
        encoder.eval()
        torch.testing.assert_close(encoder(x)[:2], encoder(x[:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("image_size", "kernel"), [(32, 8), (64, 16), (96, 24), (128, 16), (256, 16)])
def test_encoder_and_decoder_fit_each_other(image_size: int, kernel: int) -> None:
    encoder, decoder = GatedEncoder(image_size, "batch", 4, 6), GatedDecoder(6, 2, image_size, "batch")
    assert gated_strides(image_size) == (STRIDES[image_size], kernel)
    features = encoder(inputs(1, 4, image_size, image_size))
    assert features.shape == (1, 6)
    assert decoder(features).shape == (1, 2, image_size, image_size)
    innermost: Any = (encoder.layers[-1], decoder.layers[0])
    assert {layer.conv.kernel_size for layer in innermost} == {(kernel, kernel)}
    assert all(isinstance(layer.value_norm, nn.Identity) for layer in innermost)
    outer: Any = (*encoder.layers[:-1], *decoder.layers[1:])
    assert all(isinstance(layer.value_norm, nn.BatchNorm2d) for layer in outer)
    assert [layer.conv.stride[0] for layer in outer] == [*STRIDES[image_size], *STRIDES[image_size][::-1]]


@pytest.mark.parametrize("image_size", [0, 48, 65, 512])
def test_sizes_that_do_not_fit(image_size: int) -> None:
    for make in (GatedEncoder, lambda size: GatedDecoder(4, 1, size)):
        with pytest.raises(ConfigurationError, match=f"image_size={image_size} .*use 32, 64, 96, 128, 256$"):
            make(image_size)


def test_unknown_norm() -> None:
    with pytest.raises(
        ConfigurationError, match="norm='layer' is unknown: use 'batch', 'instance' or 'none'"
    ):
        GatedConv(3, 4, 5, norm="layer")  # type: ignore[arg-type]


def test_scale_is_positive_and_grows() -> None:
    raw = torch.tensor([-1e4, -200.0, -0.5, 0.0, 30.0])
    torch.testing.assert_close(
        posterior_scale(raw), torch.tensor([1e-8, 1e-8, 0.6931472 + 1e-8, 0.974077, 30.5])
    )


@pytest.mark.parametrize("image_size", [32, 128])
def test_component_vae_treats_slots_alike(image_size: int) -> None:
    """Slot for slot as if there were no others; 128 px, where the published one fails, too."""
    vae = GatedComponentVAE(5, 3, image_size, "batch").eval()
    images, log_masks = inputs(2, 3, image_size, image_size), inputs(2, 3, 1, image_size, image_size)
    mean, scale = vae.encode(images, log_masks)
    decoded = vae.decode(mean)
    assert mean.shape == scale.shape == (2, 3, 5)
    assert decoded.shape == (2, 3, 3, image_size, image_size)
    assert (scale > 0.0).all()
    for slot in range(3):
        raw = vae.encoder(torch.cat([log_masks[:, slot], images], dim=1))  # the mask is channel 0
        torch.testing.assert_close(mean[:, slot], raw[:, :5], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scale[:, slot], F.softplus(raw[:, 5:] + 0.5), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decoded[:, slot], vae.decoder(mean[:, slot]), rtol=1e-4, atol=1e-5)
