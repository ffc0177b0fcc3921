"""Slot Attention's own facts: normalisation, symmetry, precision, and TensorFlow's SAME convolutions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_genesis.layers import PositionEmbedding, SlotAttentionModule
from lightning_genesis.layers.slot_attention import SameConv2d, SameConvTranspose2d, position_features
from tests.reference.slot_attention import same_convolution, same_transposed_convolution


def attention_module(slot_dim: int = 8, **options: bool) -> SlotAttentionModule:
    torch.manual_seed(0)
    return SlotAttentionModule(6, slot_dim, 16, **options)


def inputs_and_slots(num_slots: int = 4, slot_dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 30, 6, generator=generator)
    return inputs, torch.randn(2, num_slots, slot_dim, generator=generator)


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("num_iterations", [1, 3, 7])
@torch.no_grad()
def test_attention_is_normalised_over_slots(num_iterations: int) -> None:
    slots, log_attention = attention_module()(*inputs_and_slots(), num_iterations)
    assert slots.shape == (2, 4, 8)
    assert log_attention.shape == (2, 4, 30)
    torch.testing.assert_close(log_attention.exp().sum(dim=1), torch.ones(2, 30))
    assert log_attention.std(dim=1).min() > 0.0


@pytest.mark.parametrize("norm_inputs", [True, False])
@torch.no_grad()
def test_order_of_slots_and_of_pixels_does_not_matter(norm_inputs: bool) -> None:
    module, (inputs, slots) = attention_module(norm_inputs=norm_inputs), inputs_and_slots()
    expected = module(inputs, slots)
    slot_order, pixel_order = torch.tensor([2, 0, 3, 1]), torch.randperm(30)
    found = module(inputs[:, pixel_order], slots[:, slot_order])
    torch.testing.assert_close(found.slots, expected.slots[:, slot_order])
    torch.testing.assert_close(found.log_attention, expected.log_attention[:, slot_order][..., pixel_order])
    assert not torch.allclose(found.slots, expected.slots)


@torch.no_grad()
def test_iterations_are_the_same_step_again() -> None:
    module, (inputs, slots) = attention_module(), inputs_and_slots()
    whole = module(inputs, slots, 3)
    for _ in range(3):
        slots, log_attention = module(inputs, slots, 1)
    torch.testing.assert_close(whole.slots, slots)
    torch.testing.assert_close(whole.log_attention, log_attention)


@torch.no_grad()
def test_update_is_a_mean_over_pixels() -> None:
    """Repeating every pixel changes no slot, so the result does not depend on the resolution."""
    module, (inputs, slots) = attention_module(), inputs_and_slots()
    found = module(inputs.repeat_interleave(3, dim=1), slots)
    torch.testing.assert_close(found.slots, module(inputs, slots).slots)


@torch.no_grad()
def test_one_slot_takes_the_mean_of_all_values() -> None:
    module, (inputs, slots) = attention_module(), inputs_and_slots(num_slots=1)
    found = module(inputs, slots, 1)
    assert torch.equal(found.log_attention, torch.zeros(2, 1, 30))
    mean = module.value(module.norm_inputs(inputs)).mean(dim=1)
    state = module.gru(mean, slots[:, 0])
    torch.testing.assert_close(found.slots[:, 0], state + module.mlp(module.norm_mlp(state)))


@torch.no_grad()
def test_a_slot_without_pixels_takes_the_mean_of_all_values() -> None:
    """The floor of the attention: without it, nothing divided by nothing."""
    module, (inputs, slots) = attention_module(), inputs_and_slots(num_slots=2)
    module.key.weight.zero_()
    module.key.weight[0, 0] = 1e6
    module.query.weight.zero_()
    module.query.weight[0] = torch.linspace(-1.0, 1.0, 8)
    inputs[..., 0] = inputs[..., 0].abs() + 5.0  # one sign for all pixels: one slot wins them all
    slots[:, 0] = torch.linspace(-1.0, 1.0, 8)
    slots[:, 1] = -slots[:, 0]
    log_attention = module(inputs, slots, 1).log_attention
    assert log_attention[:, 1].exp().max() == 0.0
    assert log_attention[:, 1].isfinite().all()
    found = module(inputs, slots, 1).slots[:, 1]
    mean = module.value(module.norm_inputs(inputs)).mean(dim=1)
    state = module.gru(mean, slots[:, 1])
    torch.testing.assert_close(found, state + module.mlp(module.norm_mlp(state)))


def test_iterations_are_in_float32_under_autocast() -> None:
    module, (inputs, slots) = attention_module(), inputs_and_slots()
    expected = module(inputs, slots)
    kinds = []
    module.query.register_forward_hook(lambda _, __, output: kinds.append(output.dtype))
    module.key.register_forward_hook(lambda _, __, output: kinds.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(inputs, slots)
    assert kinds == [torch.bfloat16, *[torch.float32] * 3]  # the pixels' keys, then three queries
    assert found.slots.dtype == found.log_attention.dtype == torch.float32
    torch.testing.assert_close(found.log_attention.exp().sum(dim=1), torch.ones(2, 30))
    torch.testing.assert_close(found.slots, expected.slots, rtol=0.05, atol=0.05)
    found.slots.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


def test_gradients_by_finite_differences() -> None:
    """Along random directions; float32, hence the coarse step and tolerance."""
    module, (inputs, slots) = attention_module(), inputs_and_slots()
    target = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2))

    def loss() -> Tensor:
        return (module(inputs, slots).slots * target).sum()

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        if name == "norm_slots.bias":  # shifts all queries alike, which no softmax over slots sees
            assert parameter.grad is not None
            assert parameter.grad.abs().max() < 1e-4
            continue
        direction = torch.randn(parameter.shape, generator=generator)
        assert parameter.grad is not None
        slope = (parameter.grad * direction).sum().item()
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                parameter.add_(step * direction)
                values.append(loss().item())
                parameter.sub_(step * direction)
        assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-2, abs=2e-2), name


# ---------------------------------------------------------------- positions


def test_position_features() -> None:
    features = position_features(5)
    assert features.shape == (5, 5, 4)
    torch.testing.assert_close(features[3, 1], torch.tensor([0.75, 0.25, 0.25, 0.75]))
    torch.testing.assert_close(features[0, 4], torch.tensor([0.0, 1.0, 1.0, 0.0]))


@torch.no_grad()
def test_position_embedding_adds_a_linear_function_of_position() -> None:
    embedding = PositionEmbedding(3, 5, order=(2, 0, 1, 3))
    maps = torch.randn(2, 3, 5, 5)
    weight, bias = embedding.projection.weight, embedding.projection.bias
    for row, column in ((0, 0), (3, 1), (4, 4)):
        r, c = row / 4, column / 4
        expected = weight @ torch.tensor([1 - r, r, c, 1 - c]) + bias
        torch.testing.assert_close(embedding(maps)[1, :, row, column], maps[1, :, row, column] + expected)
    assert "features" not in embedding.state_dict()


# ---------------------------------------------------------------- TensorFlow's SAME


@pytest.mark.parametrize("size", [4, 5, 8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (5, 2), (3, 1), (3, 2)])
@torch.no_grad()
def test_convolution_against_brute_force(size: int, kernel: int, stride: int) -> None:
    conv = SameConv2d(2, 3, kernel, stride)
    images = torch.randn(2, 2, size, size)
    expected = same_convolution(
        images.permute(0, 2, 3, 1).double().numpy(), conv.weight.permute(2, 3, 1, 0).double().numpy(), stride
    )
    assert conv.bias is not None
    found = (conv(images) - conv.bias[:, None, None]).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (5, 2), (3, 1), (3, 2)])
@torch.no_grad()
def test_transposed_convolution_against_brute_force(size: int, kernel: int, stride: int) -> None:
    conv = SameConvTranspose2d(2, 3, kernel, stride)
    images = torch.randn(2, 2, size, size)
    expected = same_transposed_convolution(
        images.permute(0, 2, 3, 1).double().numpy(), conv.weight.permute(2, 3, 1, 0).double().numpy(), stride
    )
    assert conv.bias is not None
    found = (conv(images) - conv.bias[:, None, None]).permute(0, 2, 3, 1)
    assert found.shape == (2, stride * size, stride * size, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_transposed_convolution_is_the_adjoint_of_the_convolution() -> None:
    """`<conv x, y> = <x, conv^T y>`: the definition, for the decoder's 5x5 kernel of stride 2."""
    down, up = SameConv2d(3, 2, 5, 2).double(), SameConvTranspose2d(2, 3, 5, 2).double()
    for bias in (down.bias, up.bias):
        assert bias is not None
        bias.zero_()
    up.weight.copy_(down.weight)
    x, y = torch.randn(1, 3, 8, 8).double(), torch.randn(1, 2, 4, 4).double()
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())


@torch.no_grad()
def test_pytorchs_usual_padding_is_shifted_by_a_pixel() -> None:
    same = SameConvTranspose2d(2, 3, 5, 2)
    usual = torch.nn.ConvTranspose2d(2, 3, 5, 2, padding=2, output_padding=1)
    usual.load_state_dict(same.state_dict())
    maps = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(usual(maps)[..., :-1, :-1], same(maps)[..., 1:, 1:])
    assert not torch.allclose(usual(maps), same(maps))


# ---------------------------------------------------------------- implicit gradients


def test_the_implicit_gradient_is_that_of_all_iterations_at_a_fixed_point() -> None:
    """More terms of the Neumann series come as near as one likes to the gradient unrolled to convergence."""
    module, (inputs, slots) = attention_module(), inputs_and_slots()
    with torch.no_grad():  # makes the update a contraction, so that there is a fixed point
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.5)
        fixed = module(inputs, slots, num_iterations=400).slots
        assert (module(inputs, fixed, num_iterations=1).slots - fixed).abs().max() < 1e-5

    def gradient(iterations: int, of_last: int | None) -> Tensor:
        module.zero_grad()
        module(inputs, slots, iterations, of_last).slots.square().sum().backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    unrolled = gradient(120, None)
    errors = [((gradient(120, terms) - unrolled).norm() / unrolled.norm()).item() for terms in (1, 8, 40)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01
    cosine = torch.cosine_similarity(gradient(120, 1), unrolled, dim=0).item()
    assert cosine > 0.5  # one term, as in the paper, points the way


def test_one_term_is_the_gradient_of_the_last_iteration_alone() -> None:
    module, (inputs, slots) = attention_module(), inputs_and_slots()
    slots.requires_grad_()
    found = module(inputs, slots, 3, gradient_iterations=1).slots
    with torch.no_grad():
        before = module(inputs, slots, 2).slots
    expected = module(inputs, before, 1).slots
    torch.testing.assert_close(found, expected)
    weights = list(module.parameters())
    for one, other in zip(
        torch.autograd.grad(found.sum(), weights, allow_unused=True),
        torch.autograd.grad(expected.sum(), weights, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_straight_through_passes_the_gradient_on_to_where_the_slots_started() -> None:
    module, (inputs, slots) = attention_module(), inputs_and_slots()
    slots.requires_grad_()
    found = module(inputs, slots, 3, gradient_iterations=1, straight_through=True).slots
    torch.testing.assert_close(found, module(inputs, slots, 3).slots)
    with torch.no_grad():
        before = module(inputs, slots, 2).slots
    before.requires_grad_()
    last = module(inputs, before, 1).slots
    expected = torch.autograd.grad(last.square().sum(), before)[0]
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), slots)[0], expected)
