"""What several published models are made of, written out slot by slot from the specifications, for float64.

Independent of `lightning_genesis`: weights come by their official names, recurrences and normalisations are
written out, every step of a loop is a step of a loop. Only convolutions are torch's own.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
Gaussian = tuple[Tensor, Tensor]
"""Mean and standard deviation."""


def linear(w: State, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def conv(w: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride, padding)


def coordinates(size: int, like: Tensor) -> Tensor:
    """Row, then column, `[2, S, S]` in [-1, 1]."""
    axis = -1.0 + 2.0 * torch.arange(size).to(like) / (size - 1)
    return torch.stack([axis[:, None].expand(size, size), axis[None, :].expand(size, size)])


def broadcast(z: Tensor, size: int) -> Tensor:
    """`[B, D]` to `[B, D + 2, S, S]`, coordinates last."""
    grid = coordinates(size, z).expand(len(z), -1, -1, -1)
    return torch.cat([z[:, :, None, None].expand(-1, -1, size, size), grid], dim=1)


def normalise(x: Tensor, dims: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    """Mean 0 and variance 1 over `dims`."""
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()


def layer_norm(w: State, name: str, x: Tensor) -> Tensor:
    return normalise(x, (-1,)) * w[f"{name}.weight"] + w[f"{name}.bias"]


def affine(w: State, name: str, x: Tensor) -> Tensor:
    """Scale and shift of every channel of a map."""
    return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def group_norm(w: State, name: str, x: Tensor, groups: int = 8) -> Tensor:
    y = normalise(x.unflatten(1, (groups, -1)), (2, 3, 4)).flatten(1, 2)
    return affine(w, name, y)


def batch_norm(w: State, name: str, x: Tensor, training: bool) -> Tensor:
    if training:
        return affine(w, name, normalise(x, (0, 2, 3)))
    mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return affine(w, name, (x - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None])


def instance_norm(w: State, name: str, x: Tensor) -> Tensor:
    return affine(w, name, normalise(x, (2, 3)))


def lstm(w: State, stem: str, x: Tensor, state: Gaussian | None) -> tuple[Tensor, Gaussian]:
    """One step; gates in the order input, forget, cell, output."""
    weight, recurrent = w[f"{stem}.weight_ih_l0"], w[f"{stem}.weight_hh_l0"]
    bias = w[f"{stem}.bias_ih_l0"] + w[f"{stem}.bias_hh_l0"]
    hidden, cell = state or (x.new_zeros(len(x), recurrent.shape[1]),) * 2
    i, f, g, o = (x @ weight.T + hidden @ recurrent.T + bias).chunk(4, dim=1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    return hidden, (hidden, cell)


def unet(w: State, stem: str, x: Tensor, norm: str) -> Tensor:
    """Without its last 1x1 convolution."""
    depth = len([key for key in w if key.startswith(f"{stem}.down.") and key.endswith(".0.weight")])

    def block(name: str, maps: Tensor) -> Tensor:
        maps = conv(w, f"{name}.0", maps, padding=1)
        normed = group_norm(w, f"{name}.1", maps) if norm == "group" else instance_norm(w, f"{name}.1", maps)
        return normed.relu()

    skips = []
    for i in range(depth):
        x = block(f"{stem}.down.{i}", x)
        skips.append(x)
        x = x[:, :, ::2, ::2] if i < depth - 1 else x
    flat = x.flatten(1)
    for i in (1, 3, 5):
        flat = linear(w, f"{stem}.mlp.{i}", flat).relu()
    x = flat.view_as(x)
    for i in range(depth):
        x = block(f"{stem}.up.{i}", torch.cat([x, skips.pop()], dim=1))
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if i < depth - 1 else x
    return x


def softplus_scale(raw: Tensor) -> Tensor:
    """The standard deviation of GENESIS's posteriors."""
    return (1.0 + (raw + 0.5).exp()).log() + 1e-8


def straight_through_clamp(x: Tensor, low: float, high: float) -> Tensor:
    return x + (x.clamp(low, high) - x).detach()


def log_normal(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / scale).square() - scale.log() - 0.5 * math.log(2.0 * math.pi)


def sampled_kl(z: Tensor, posterior: Gaussian, prior: Gaussian) -> Tensor:
    """One sample's estimate, summed over the last dimension."""
    return (log_normal(z, *posterior) - log_normal(z, *prior)).sum(-1)


def analytic_kl(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """In closed form, summed over the last dimension."""
    (mean, scale), (prior_mean, prior_scale) = posterior, prior
    ratio = (scale / prior_scale).square()
    return 0.5 * (ratio + ((mean - prior_mean) / prior_scale).square() - 1.0 - ratio.log()).sum(-1)


def standard(like: Tensor) -> Gaussian:
    return torch.zeros_like(like), torch.ones_like(like)


def mixture_error(images: Tensor, components: Tensor, masks: Tensor, std: Tensor) -> Tensor:
    """`-log sum_k m_k N(x; x_k, std_k)` of every pixel and channel, summed; components `[B, K, 3, S, S]`.

    Sum and logarithm without the log-sum-exp trick, as published.
    """
    std = std[:, None, None, None]
    density = masks * log_normal(images[:, None], components, std).exp()
    return -density.sum(1).log().sum((1, 2, 3))


def stick_breaking(logits: list[Tensor]) -> Tensor:
    """Masks `[B, K + 1, 1, S, S]` of K logits; the last one is the rest."""
    scope, masks = torch.ones_like(logits[0]), []
    for logit in logits:
        share = 1.0 / (1.0 + (-logit).exp())
        masks.append(scope * share)
        scope = scope * (1.0 - share)
    return torch.stack([*masks, scope], dim=1)


def learned_prior(raw: Tensor) -> Gaussian:
    """GENESIS's, of the output of a linear layer."""
    mean, scale = raw.chunk(2, dim=-1)
    return mean.tanh(), (scale + 4.0).sigmoid() + 1e-4


def slot_priors(w: State, slots: Tensor) -> Gaussian:
    """GENESIS's autoregressive prior of slots `[B, K, D]`; N(0, 1) without an LSTM in the state."""
    means, scales = ([value] for value in standard(slots[:, 0]))
    state = None
    for k in range(1, slots.shape[1]):
        if "prior_lstm.weight_ih_l0" in w:
            hidden, state = lstm(w, "prior_lstm", slots[:, k - 1], state)
            mean, scale = learned_prior(linear(w, "prior_linear", hidden))
        else:
            mean, scale = standard(slots[:, k])
        means.append(mean)
        scales.append(scale)
    return torch.stack(means, 1), torch.stack(scales, 1)
