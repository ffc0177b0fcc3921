"""Priors in closed form, or by expectation maximisation: every slot on its own, whatever the others."""

from math import log, pi
from typing import ClassVar

import torch
from torch import Tensor

from lightning_genesis.priors.base import SetPrior
from lightning_genesis.scene import Noise, draw_normal, draw_uniform

EM_STEPS = 100
RIDGE = 1e-5
"""Added to the variances of standardised slots, so that a dimension without any has a density."""


class StandardNormal(SetPrior):
    """`N(0, 1)` for every number: the prior that most slot models are trained with, or without."""

    kind = "standard_normal"
    learned = False

    def start(self, sets: Tensor) -> None:
        """Has nothing to see."""

    def draw(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Tensor:
        """See `SetPrior.draw`."""
        shape = (num_images, num_slots or self.num_slots, self.dim)
        return temperature * draw_normal(noise, shape, self.shift)

    def log_density(self, sets: Tensor, noise: Noise | None = None) -> Tensor:
        """See `SetPrior.log_density`; exact."""
        return -0.5 * (sets.square() + log(2.0 * pi)).sum(dim=(1, 2))


class GaussianMixture(SetPrior):
    """A mixture of Gaussians for every slot, the slots independent; one for each place if they are ordered.

    Args:
        dim: see `SetPrior`.
        num_slots: see `SetPrior`.
        ordered: see `SetPrior`.
        num_components: Gaussians M.
    """

    kind = "mixture"
    learned = False
    diagonal: ClassVar[bool] = False
    logits: Tensor
    mean: Tensor
    factor: Tensor

    def __init__(self, dim: int, num_slots: int, ordered: bool = False, num_components: int = 16) -> None:
        super().__init__(dim, num_slots, ordered, num_components=num_components)
        places = num_slots if ordered else 1
        self.register_buffer("logits", torch.zeros(places, num_components))
        self.register_buffer("mean", torch.zeros(places, num_components, dim))
        self.register_buffer("factor", torch.eye(dim).repeat(places, num_components, 1, 1))

    @torch.no_grad()
    def start(self, sets: Tensor) -> None:
        """Fits, from centres that are drawn from the slots by k-means++ with seed 0."""
        super().start(sets)
        slots = self._standard(sets)
        slots = slots.transpose(0, 1) if self.ordered else slots.flatten(0, 1)[None]
        for place, points in enumerate(slots):
            found = fit_mixture(points.double(), self.logits.shape[1], diagonal=self.diagonal)
            for buffer, value in zip((self.logits, self.mean, self.factor), found, strict=True):
                buffer[place] = value.to(buffer)

    def _places(self, num_slots: int) -> Tensor:
        return torch.arange(num_slots, device=self.mean.device).clamp(max=len(self.mean) - 1)

    def draw(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Tensor:
        """See `SetPrior.draw`; the temperature leaves the choice of components alone."""
        count = num_slots or self.num_slots
        normals = draw_normal(noise, (num_images, count, self.dim), self.shift)
        uniform = draw_uniform(noise, (num_images, count, 1), self.shift)
        places = self._places(count)
        bounds = self.logits.softmax(dim=1).cumsum(dim=1)[places]  # [K, M]
        chosen = (uniform > bounds).sum(dim=2).clamp(max=bounds.shape[1] - 1)  # [B, K]
        mean, factor = self.mean[places, chosen], self.factor[places, chosen]
        slots = mean + temperature * (factor @ normals[..., None])[..., 0]
        return self.shift + self.scale * slots

    def log_density(self, sets: Tensor, noise: Noise | None = None) -> Tensor:
        """See `SetPrior.log_density`; exact."""
        places = self._places(sets.shape[1])
        slots = self._standard(sets)
        joint = _log_joint(slots, self.logits[places], self.mean[places], self.factor[places])
        return joint.logsumexp(dim=2).sum(dim=1) - self._volume(sets.shape[1])


class FullGaussian(GaussianMixture):
    """One Gaussian with a full covariance for every slot."""

    kind = "gaussian"

    def __init__(self, dim: int, num_slots: int, ordered: bool = False) -> None:
        super().__init__(dim, num_slots, ordered, num_components=1)
        self.sizes = {}


class DiagonalGaussian(FullGaussian):
    """One Gaussian with a diagonal covariance for every slot."""

    kind = "diagonal"
    diagonal = True


def _log_joint(points: Tensor, logits: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Log weight plus log density `[B, K, M]`, of points `[B, K, D]` and parameters `[K, M, ...]`."""
    centred = (points[:, :, None] - mean).permute(1, 2, 3, 0)  # [K, M, D, B]
    whitened = torch.linalg.solve_triangular(factor, centred, upper=False).permute(3, 0, 1, 2)
    volume = factor.diagonal(dim1=2, dim2=3).log().sum(dim=2)
    density = -0.5 * whitened.square().sum(dim=3) - volume - 0.5 * points.shape[2] * log(2.0 * pi)
    return density + logits.log_softmax(dim=1)


def fit_mixture(points: Tensor, num_components: int, diagonal: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A mixture of Gaussians by expectation maximisation, which for one component ends after one step.

    Args:
        points: `[N, D]`, standardised.
        num_components: M.
        diagonal: of the covariances.

    Returns:
        log weights `[M]`, means `[M, D]` and lower triangular factors of the covariances `[M, D, D]`.
    """
    size = points.shape[1]
    centres = _spread_centres(points, num_components)
    share = torch.nn.functional.one_hot(torch.cdist(points, centres).argmin(dim=1), num_components).to(points)
    before = -torch.inf
    for _ in range(EM_STEPS):
        weight = share.sum(dim=0).clamp_min(1e-9)  # [M]
        mean = share.T @ points / weight[:, None]
        second = torch.stack([(points * column[:, None]).T @ points for column in share.T])
        covariance = second / weight[:, None, None] - mean[:, :, None] * mean[:, None]
        if diagonal:
            covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
        covariance = covariance + RIDGE * torch.eye(size).to(points)
        factor, logits = torch.linalg.cholesky(covariance), (weight / len(points)).log()
        joint = _log_joint(points[:, None], logits[None], mean[None], factor[None])[:, 0]
        likelihood = joint.logsumexp(dim=1).mean().item()
        if num_components == 1 or likelihood - before < 1e-6:
            break
        before, share = likelihood, joint.softmax(dim=1)
    return logits, mean, factor


def _spread_centres(points: Tensor, count: int) -> Tensor:
    """Centres that k-means++ draws from points `[N, D]`, `[count, D]`."""
    generator = torch.Generator().manual_seed(0)
    chosen = [points[int(torch.randint(len(points), (), generator=generator))]]
    nearest = (points - chosen[0]).square().sum(dim=1)
    for _ in range(count - 1):
        weights = nearest.cpu() if float(nearest.sum()) > 0 else torch.ones(len(points), dtype=torch.float64)
        chosen.append(points[int(torch.multinomial(weights, 1, generator=generator))])
        nearest = torch.minimum(nearest, (points - chosen[-1]).square().sum(dim=1))
    return torch.stack(chosen)
