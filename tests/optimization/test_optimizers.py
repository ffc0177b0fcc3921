"""Optimisers and their options against torch's own, and what a model does with them."""

from typing import Any

import pytest
import torch

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import MONet
from lightning_genesis.optimization.optimizers import OPTIONS, effective_options, make_optimizer, set_options

ASKED: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"betas": [0.8, 0.9], "weight_decay": 0.1}),
    ("AdamW", {"weight_decay": 0.3, "eps": 1e-4}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("RMSprop", {"alpha": 0.7, "centered": True}),
]


def descend(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, steps: int = 20) -> torch.Tensor:
    for _ in range(steps):
        optimizer.zero_grad()
        (weight**4 - weight).sum().backward()
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize(("name", "options"), ASKED)
def test_a_toy_problem_is_solved_as_by_torch(name: str, options: dict[str, Any]) -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64)) for _ in range(2))
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    expected = descend(getattr(torch.optim, name)([theirs], lr=0.05, **plain), theirs)
    found = descend(make_optimizer(name, [ours], 0.05, effective_options(name, options)), ours)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_no_option_is_hidden() -> None:
    """What torch applies unseen stands in the hyperparameters, and so in every checkpoint."""
    assert effective_options("AdamW", None)["weight_decay"] == 0.01
    assert effective_options("SGD", None)["momentum"] == 0
    for name, options in OPTIONS.items():
        assert set(effective_options(name, {})) == set(options)
    model = MONet(2, 32, latent_dim=4, feature_dim=8, optimizer="AdamW")
    assert model.hparams["optimizer_options"]["weight_decay"] == 0.01
    optimizer: Any = model.configure_optimizers()
    assert optimizer.defaults["weight_decay"] == 0.01
    assert optimizer.defaults["fused"] is True


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        (
            "Adma",
            {},
            r"optimizer='Adma' is unknown \(did you mean Adam\?\): use one of Adam, AdamW, SGD, RMSprop",
        ),
        (
            "Adam",
            {"momentum": 0.9},
            r"optimizer_options\.momentum: Adam has no such option.*it has betas, eps",
        ),
        ("SGD", {"momentun": 0.9}, r"SGD has no such option \(did you mean momentum\?\)"),
        ("Adam", {"betas": [1.5, 0.9]}, r"optimizer_options: Adam does not take betas=\[1\.5, 0\.9\]"),
        ("Adam", {"betas": 3}, "optimizer_options: Adam does not take betas=3"),
        ("AdamW", {"weight_decay": -1}, "Invalid weight_decay"),
        ("RMSprop", {"momentum": 0.9}, r"optimizer_options\.momentum: RMSprop has no such option"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigurationError, match=line):
        MONet(2, 32, latent_dim=4, feature_dim=8, optimizer=name, optimizer_options=options)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_trains_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ConfigurationError, match="learning_rate="):
        MONet(2, 32, latent_dim=4, feature_dim=8, learning_rate=rate)


def test_options_change_under_way() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer("Adam", [weight], 0.1, effective_options("Adam", None))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(3):
        weight.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
    moments = optimizer.state[weight]["exp_avg"].clone()
    set_options(optimizer, 0.01, effective_options("Adam", {"weight_decay": 0.5}), scheduler)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (pytest.approx(0.01 / 4), 0.01, 0.5)
    assert torch.equal(optimizer.state[weight]["exp_avg"], moments)
    weight.grad = torch.ones(3)
    optimizer.step()
    scheduler.step()
    assert group["lr"] == pytest.approx(0.01 / 5)
