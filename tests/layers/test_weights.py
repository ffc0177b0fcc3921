"""Weights that are cast or used repeatedly at once give what they give one by one."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.counting import count_operations
from lightning_genesis.layers.weights import LowPrecisionSequential, cast_weights, repeated

PASSES = 4


def recurrent(module: nn.Module, x: Tensor, at_once: bool) -> Tensor:
    weights = repeated(module)
    for _ in range(PASSES):
        if at_once:
            with weights():
                x = module(x)
        else:
            x = module(x)
    return x.square().sum()


def test_repeated_weights_have_the_gradients_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 5)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    parameters = list(module.parameters())
    plain = torch.autograd.grad(recurrent(module, x, at_once=False), parameters)
    found = torch.autograd.grad(recurrent(module, x, at_once=True), parameters)
    for ours, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))


def test_a_pass_adds_one_gradient_and_not_one_per_weight() -> None:
    module = nn.Sequential(*(nn.Linear(5, 5) for _ in range(6)))
    with count_operations() as counts:
        recurrent(module, torch.randn(3, 5), at_once=True).backward()
    with count_operations() as plain:
        recurrent(module, torch.randn(3, 5), at_once=False).backward()
    assert plain.kernels["add"] + plain.kernels["add_"] >= 12 * (PASSES - 1)
    assert counts.kernels["add"] + counts.kernels["add_"] == PASSES - 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = LowPrecisionSequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 4, 1)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).float().mean(dim=(2, 3)))


def gradients(model: Model, x: Tensor, low: bool) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=low), cast_weights(model, x):
        loss = model(x).float().square().sum()
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_block_is_computed_in_the_type_of_autocast() -> None:
    model, x = Model(), torch.rand(2, 3, 8, 8)
    seen: dict[str, set[torch.dtype]] = {}
    for name, part in model.block.named_children():
        part.register_forward_hook(
            lambda module, args, out, name=name: seen.setdefault(name, set()).add(out.dtype)
        )
    low = gradients(model, x, low=True)
    assert seen == {name: {torch.bfloat16} for name in "0123"}
    assert {gradient.dtype for gradient in low} == {torch.float32}
    exact = gradients(Model(), x, low=False)
    assert len(low) == len(exact) == 8
    for ours, expected in zip(low, exact, strict=True):
        assert float((ours - expected).norm()) < 0.05 * float(expected.norm()) + 1e-3
    assert model.block.cast_to is None


def test_weights_are_cast_by_one_kernel_and_back_by_another() -> None:
    model, x = Model(), torch.rand(2, 3, 8, 8)
    model.block.append(nn.Linear(3, 3))  # is not used
    with torch.autocast("cpu", torch.bfloat16), count_operations() as counts, cast_weights(model, x):
        model.head(model.block[:4](x.bfloat16()).float().mean(dim=(2, 3))).sum().backward()
    assert counts.kernels["_foreach_copy_"] == 2
    assert counts.kernels["cat"] == 0
    assert [p.grad is None for p in model.block.parameters()] == [False] * 6 + [True] * 2


def test_without_autocast_nothing_changes() -> None:
    model, x = Model(), torch.rand(2, 3, 8, 8)
    before = model(x)
    with cast_weights(model, x):
        assert torch.equal(model(x), before)


def test_weights_come_back_after_a_failure() -> None:
    model, x = Model(), torch.rand(2, 3, 8, 8)
    before = dict(model.named_parameters())
    with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16), cast_weights(model, x):
        model(x[:, :2])
    assert all(value is before[name] for name, value in model.named_parameters())
    assert model.block.cast_to is None
