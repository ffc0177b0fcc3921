"""The set flow: equivariant to permutations, and its density against Jacobians and numerical integration."""

from math import e, exp, log, pi

import pytest
import torch
from torch import Tensor

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.set_flow import SetFlow, integrate
from lightning_genesis.priors.flow import even_times


def random_flow(dim: int, scale: float = 0.3, **options: int) -> SetFlow:
    """A flow whose every weight is random, also those that start at zero."""
    torch.manual_seed(0)
    flow = SetFlow(dim, width=8, num_layers=2, num_heads=2, **options).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow


def test_the_order_of_a_set_changes_nothing_but_the_order() -> None:
    flow, sets, order = random_flow(3), torch.randn(4, 5, 3).double(), torch.tensor([3, 0, 4, 1, 2])
    time = torch.rand(4).double()
    with torch.no_grad():
        velocity = flow(sets, time)
        torch.testing.assert_close(flow(sets[:, order], time), velocity[:, order], rtol=0, atol=1e-12)
        torch.testing.assert_close(flow.push(sets[:, order]), flow.push(sets)[:, order], rtol=0, atol=1e-12)
    density = flow.log_density(sets, num_steps=4)
    torch.testing.assert_close(flow.log_density(sets[:, order], num_steps=4), density, rtol=0, atol=1e-11)
    assert (velocity[:, 0] - velocity[:, 1]).abs().min() > 1e-4  # slots are not all alike


def test_slots_with_places_are_no_set_and_those_beyond_share_the_last_place() -> None:
    flow, sets = random_flow(3, num_positions=2), torch.randn(2, 4, 3).double()
    time = torch.rand(2).double()
    with torch.no_grad():
        velocity = flow(sets, time)
        assert (flow(sets.flip(1), time).flip(1) - velocity).abs().max() > 1e-3
        order = torch.tensor([0, 3, 1, 2])  # all but the first share a place
        torch.testing.assert_close(flow(sets[:, order], time), velocity[:, order], rtol=0, atol=1e-12)


def test_the_solver_is_of_fourth_order() -> None:
    state = torch.tensor([1.0], dtype=torch.float64)
    errors = [
        abs(integrate(lambda y, t: y * t.cos(), state, 0.0, 2.0, steps).item() - exp(0.9092974268256817))
        for steps in (4, 8)
    ]
    assert errors[1] < 1e-4
    assert 12.0 < errors[0] / errors[1] < 22.0


def test_the_loss_of_the_best_field_is_the_variance_that_remains() -> None:
    """Of standard normal slots, the velocity given z at t is `(2t - 1) z / ((1 - t)² + t²)`."""

    class Best(SetFlow):
        def forward(self, sets: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
            t = time[:, None, None]
            return (2.0 * t - 1.0) * sets / ((1.0 - t) ** 2 + t**2)

    generator = torch.Generator().manual_seed(0)
    sets, noise = torch.randn(2, 4000, 4, 2, generator=generator, dtype=torch.float64)
    for t in (0.1, 0.5, 0.8):
        expected = 2.0 - (2.0 * t - 1.0) ** 2 / ((1.0 - t) ** 2 + t**2)
        loss = Best(2).loss(sets, noise, torch.full((4000,), t, dtype=torch.float64)).mean().item()
        assert loss == pytest.approx(expected, rel=0.03), t
        # any other field does worse
        assert SetFlow(2).double().loss(sets, noise, torch.full((4000,), t).double()).mean() > loss - 0.02


def test_the_density_is_that_of_the_change_of_variables() -> None:
    flow, noise = random_flow(2, scale=0.15), torch.randn(2, 2, 2).double()
    for start in noise:
        jacobian = torch.autograd.functional.jacobian(lambda x: flow.push(x[None], num_steps=20)[0], start)
        volume = torch.linalg.slogdet(jacobian.reshape(4, 4)).logabsdet
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(start).sum() - volume
        with torch.no_grad():
            slots = flow.push(start[None], num_steps=20)
        torch.testing.assert_close(flow.log_density(slots, num_steps=20)[0], expected, rtol=0, atol=1e-4)


def test_the_density_integrates_to_one() -> None:
    flow = random_flow(1, scale=0.2)
    axis = torch.linspace(-8.0, 8.0, 41).double()  # a smooth density: the sum is as good as the integral
    grid = torch.cartesian_prod(axis, axis)[:, :, None]  # two slots of one number
    density = flow.log_density(grid, num_steps=8).exp()
    assert density.sum().item() * (axis[1] - axis[0]).item() ** 2 == pytest.approx(1.0, abs=2e-3)
    assert density.std() > 0.001


def test_probes_estimate_the_divergence_without_bias() -> None:
    flow, sets = random_flow(2), torch.randn(3, 2, 2).double()
    # over an orthogonal basis the estimate is the trace itself
    basis = (2.0 * torch.eye(4, dtype=torch.float64)).reshape(4, 1, 2, 2).expand(4, 3, 2, 2)
    exact = flow.log_density(sets, num_steps=3)
    torch.testing.assert_close(flow.log_density(sets, num_steps=3, probes=basis), exact, rtol=0, atol=1e-12)
    assert (flow.log_density(sets, num_steps=3, probes=basis[:1]) - exact).abs().max() > 1e-6


def test_an_untrained_flow_is_the_standard_normal() -> None:
    flow, sets = SetFlow(3, num_heads=2), torch.randn(2, 4, 3)
    torch.testing.assert_close(flow.push(sets, num_steps=2), sets)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(sets).sum(dim=(1, 2))
    torch.testing.assert_close(flow.log_density(sets, num_steps=2), expected)


def test_times_lie_one_in_each_part() -> None:
    times = even_times(torch.zeros(50, 1, 1), torch.Generator().manual_seed(1))
    assert (times * 50).floor().sort().values.tolist() == list(range(50))


@pytest.mark.parametrize(
    ("options", "told"), [({"width": 10, "num_heads": 4}, "width=10"), ({"num_layers": 0}, "num_layers=0")]
)
def test_sizes_that_do_not_fit_are_named(options: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        SetFlow(3, **options)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (2.0, 0.3)])
def test_the_bound_of_the_best_field_is_the_entropy(mean: float, scale: float) -> None:
    """Of independent Gaussian slots, whose velocity follows from the regression of z on its noisy version."""

    class Best(SetFlow):
        def forward(self, sets: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
            t = time[:, None, None]
            gain = t * scale**2 / ((t * scale) ** 2 + (1.0 - t) ** 2)
            slots = mean + gain * (sets - t * mean)
            return slots - (sets - t * slots) / (1.0 - t)

    torch.manual_seed(0)
    count, size = 400_000, 6
    sets = mean + scale * torch.randn(count, 3, 2).double()
    flow = Best(2).double()
    noise, place = torch.randn_like(sets), torch.rand(count).double()
    bounds = flow.cross_entropy(sets, noise, place)
    entropy = size * (0.5 * log(2.0 * pi * e) + log(scale))
    error = bounds.std() / count**0.5
    assert error < 0.03
    assert abs(bounds.mean() - entropy) < 4.0 * error
    part = slice(0, 2_000)  # a field that knows less is never better
    with torch.no_grad():
        worse = SetFlow(2, width=8).double().cross_entropy(sets[part], noise[part], place[part])
    assert worse.mean() > entropy + 1.0


def test_the_bound_takes_a_set_in_any_order_and_has_a_gradient() -> None:
    flow, order = random_flow(3), torch.tensor([3, 0, 4, 1, 2])
    sets, noise, place = torch.randn(4, 5, 3).double(), torch.randn(4, 5, 3).double(), torch.rand(4).double()
    bounds = flow.cross_entropy(sets, noise, place)
    torch.testing.assert_close(
        flow.cross_entropy(sets[:, order], noise[:, order], place), bounds, rtol=0, atol=1e-10
    )
    sets.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: flow.cross_entropy(x, noise, place), sets)
