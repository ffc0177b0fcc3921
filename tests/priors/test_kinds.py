"""Every kind of prior: what it draws, and its density against torch's, scikit-learn's and integrals."""

import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor

from lightning_genesis.errors import ConfigurationError, NonFiniteError
from lightning_genesis.priors import PRIORS, FitOptions, SceneSetFlowPrior, SetPrior, fit_prior
from lightning_genesis.scene import IndexedNoise
from tests.quick import few

SMALL: dict[str, dict[str, int]] = {
    "set_flow": {"width": 16, "num_layers": 1, "num_heads": 2},
    "scene_set_flow": {"width": 16, "num_layers": 1, "num_heads": 2, "scene_size": 2},
    "lstm": {"hidden_dim": 16},
    "mixture": {"num_components": 3},
}


def correlated(count: int, seed: int = 0) -> Tensor:
    """Sets of three slots of one number, mean 2, variance 1, every two with covariance 0.6."""
    generator = torch.Generator().manual_seed(seed)
    shared, own = torch.randn(count, 1, 1, generator=generator), torch.randn(count, 3, 1, generator=generator)
    return 2.0 + 0.6**0.5 * shared + 0.4**0.5 * own


def fitted(kind: str, sets: Tensor, steps: int = 20, ordered: bool = False, **sizes: int) -> SetPrior:
    def make() -> SetPrior:
        return PRIORS[kind](
            dim=sets.shape[2], num_slots=sets.shape[1], ordered=ordered, **{**SMALL.get(kind, {}), **sizes}
        )

    return fit_prior(make, sets, FitOptions(steps=steps, batch_size=128, learning_rate=5e-3))[0]


@pytest.mark.parametrize("kind", PRIORS)
def test_a_sample_hangs_on_its_number_alone_and_any_number_of_slots_is_drawn(kind: str) -> None:
    prior = fitted(kind, correlated(64))
    with torch.no_grad():
        drawn = prior.draw(4, noise=IndexedNoise(0, range(4)))
        assert drawn.shape == (4, 3, 1)
        torch.testing.assert_close(prior.draw(2, noise=IndexedNoise(0, [1, 3])), drawn[[1, 3]])
        for count in (1, 5):
            assert prior.draw(4, count, noise=IndexedNoise(0, range(4))).shape == (4, count, 1)
        again = prior.draw(4, noise=IndexedNoise(1, range(4)))
        assert (again - drawn).abs().min() > 0
        cold = prior.draw(400, temperature=0.01, noise=IndexedNoise(0, range(400)))
        warm = prior.draw(400, noise=IndexedNoise(0, range(400)))
        assert cold.std() < warm.std()


@pytest.mark.parametrize("kind", ["diagonal", "gaussian"])
@pytest.mark.parametrize("ordered", [False, True])
def test_gaussians_are_those_of_the_slots(kind: str, ordered: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.5]])
    sets = torch.randn(3000, 2, 2, generator=generator) @ mixing.T + torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    prior = fitted(kind, sets, ordered=ordered)
    slots = [sets[:, 0], sets[:, 1]] if ordered else [sets.flatten(0, 1)] * 2
    expected = torch.zeros(50)
    for place, points in enumerate(slots):
        covariance = torch.cov(points.T)
        covariance = covariance if kind == "gaussian" else covariance.diag().diag()
        normal = torch.distributions.MultivariateNormal(points.mean(dim=0), covariance)
        expected += normal.log_prob(sets[:50, place])
    torch.testing.assert_close(prior.log_density(sets[:50]), expected, rtol=0, atol=0.02)
    drawn = prior.draw(4000, noise=IndexedNoise(0, range(4000)))
    torch.testing.assert_close(drawn[:, 1].mean(dim=0), slots[1].mean(dim=0), rtol=0, atol=0.1)


def test_a_mixture_is_as_likely_as_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(3, (1500, 2, 1), generator=generator)
    centres = torch.tensor([[0.0, 0.0], [4.0, 1.0], [-1.0, 5.0]])
    sets = centres[which[..., 0]] + 0.5 * torch.randn(1500, 2, 2, generator=generator)
    prior = fitted("mixture", sets)
    reference = Reference(3, n_init=5, random_state=0).fit(sets.flatten(0, 1).numpy())
    expected = torch.from_numpy(reference.score_samples(sets.flatten(0, 1).double().numpy()))
    expected = expected.double().view(1500, 2).sum(dim=1)
    torch.testing.assert_close(prior.log_density(sets).double(), expected, rtol=0, atol=0.02)
    drawn = prior.draw(2000, noise=IndexedNoise(0, range(2000))).flatten(0, 1)
    share = torch.bincount(torch.cdist(drawn, centres).argmin(dim=1), minlength=3) / len(drawn)
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), rtol=0, atol=0.04)


def test_standard_normal_is_what_it_says() -> None:
    sets = correlated(20)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(sets).sum(dim=(1, 2))
    torch.testing.assert_close(fitted("standard_normal", sets).log_density(sets), expected)


@pytest.mark.parametrize("kind", few(["set_flow", "lstm"], "set_flow"))
def test_a_gaussian_set_is_recovered(kind: str) -> None:
    """Mean, variance, and what slots know of each other, which no prior of independent slots can have."""
    sets = correlated(4000)
    prior = fitted(kind, sets, steps=500)
    with torch.no_grad():
        drawn = prior.draw(4000, noise=IndexedNoise(5, range(4000)))[..., 0]
        density = prior.log_density(sets[:200]).mean().item()
    covariance = torch.cov(drawn.T)
    expected = 0.4 * torch.eye(3) + 0.6
    torch.testing.assert_close(drawn.mean(dim=0), torch.full((3,), 2.0), rtol=0, atol=0.12)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.15)
    exact = torch.distributions.MultivariateNormal(torch.full((3,), 2.0), expected)
    assert density == pytest.approx(exact.log_prob(sets[:200, :, 0]).mean().item(), abs=0.1)
    independent = fitted("gaussian", sets).log_density(sets[:200]).mean().item()
    assert density > independent + 0.2


@pytest.mark.parametrize("kind", ["set_flow", "lstm", "gaussian"])
def test_densities_integrate_to_one_in_the_units_of_the_slots(kind: str) -> None:
    prior = fitted(kind, correlated(200)[:, :2] * 3.0, steps=30)
    axis = torch.linspace(-12.0, 24.0, 41)
    grid = torch.cartesian_prod(axis, axis)[:, :, None]
    total = prior.log_density(grid).exp().sum().item() * (axis[1] - axis[0]).item() ** 2
    assert total == pytest.approx(1.0, abs=0.03)


@pytest.mark.slow
def test_the_scene_variable_says_what_slots_share() -> None:
    """After 500 steps the scene says nothing yet."""
    prior = fitted("scene_set_flow", correlated(4000), steps=1500)
    assert isinstance(prior, SceneSetFlowPrior)
    assert prior.scene_dim == 2
    scenes = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = torch.stack(
            [prior.draw(40, noise=IndexedNoise(seed, range(40)), scene_latent=scenes) for seed in range(10)]
        )
        means = drawn.mean(dim=(2, 3))  # of each scene, by seed
        assert means.mean(dim=0).std() > means.std(dim=0).mean()  # the scene decides more than the noise
        bound = prior.log_density(correlated(200, seed=1), IndexedNoise(0, range(200))).mean().item()
    exact = torch.distributions.MultivariateNormal(torch.full((3,), 2.0), 0.4 * torch.eye(3) + 0.6)
    truth = exact.log_prob(correlated(200, seed=1)[..., 0]).mean().item()
    assert truth - 5.0 < bound < truth + 0.1


def test_the_same_seed_gives_the_same_prior_and_leaves_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = (fitted("set_flow", correlated(100), steps=10).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_posterior_scales_are_drawn_anew() -> None:
    """Means alone have variance 1; with scales of 2 the slots have variance 5."""
    means = torch.randn(4000, 2, 1, generator=torch.Generator().manual_seed(0))
    prior, _ = fit_prior(
        lambda: PRIORS["gaussian"](dim=1, num_slots=2), means, scales=torch.full_like(means, 2.0)
    )
    drawn = prior.draw(4000, noise=IndexedNoise(0, range(4000)))
    assert drawn.var().item() == pytest.approx(5.0, rel=0.08)


def test_what_cannot_be_fitted_is_told() -> None:
    with pytest.raises(ConfigurationError, match="1 scenes"):
        fitted("gaussian", correlated(1))
    with pytest.raises(NonFiniteError, match="learning_rate"):
        fitted("lstm", correlated(64) * torch.inf)
    with pytest.raises(ConfigurationError, match="hidden_dim=0"):
        fitted("lstm", correlated(64), hidden_dim=0)
    for options, told in (({"steps": 0}, "--steps 0"), ({"average": 1.0}, "--average 1.0")):
        with pytest.raises(ConfigurationError, match=told):
            FitOptions(**options)  # type: ignore[arg-type]
