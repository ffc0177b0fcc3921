"""The published SRI and EfficientMORL, written out from their specification."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.reference.blocks import (
    Gaussian,
    State,
    analytic_kl,
    conv,
    layer_norm,
    linear,
    lstm,
    mixture_error,
    normalise,
    sampled_kl,
    standard,
)
from tests.reference.published import Values, elu, v2_decoder, v2_encoder
from tests.reference.slot_attention import SineNoise
from tests.reference.sri import FixtureNoise


def variance_scale(raw: Tensor) -> Tensor:
    """The standard deviation whose square is a softplus."""
    return ((1.0 + raw.clamp(max=80.0).exp()).log() + 1e-5).sqrt()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + (x / math.sqrt(2.0)).erf())


# ---------------------------------------------------------------- SRI


def scene_posterior(w: State, slots: Tensor) -> Gaussian:
    """Of slots `[B, K, D]`, pair by pair."""
    depth = len([key for key in w if key.startswith("scene_encoder.blocks.") and key.endswith(".k.weight")])
    for layer in range(depth):
        stem = f"scene_encoder.blocks.{layer}"
        key, query = linear(w, f"{stem}.k", slots), linear(w, f"{stem}.q", slots)
        rows = []
        for i in range(slots.shape[1]):
            own = slots[:, i : i + 1].expand_as(slots)
            pair = torch.cat([own, own - slots], dim=2)
            value = linear(w, f"{stem}.relational_v.2", gelu(linear(w, f"{stem}.relational_v.0", pair)))
            weight = ((query[:, i : i + 1] * key).sum(2) / math.sqrt(slots.shape[2])).softmax(1)
            rows.append((weight[:, :, None] * value).sum(1))
        normed = layer_norm(w, f"{stem}.norm_pre_ff", slots + torch.stack(rows, 1))
        slots = slots + linear(w, f"{stem}.mlp.2", gelu(linear(w, f"{stem}.mlp.0", normed)))
    hidden = gelu(linear(w, "scene_encoder.project_to_scene_dim.0", slots.sum(1)))
    return linear(w, "scene_encoder.mu_s", hidden), variance_scale(linear(w, "scene_encoder.sp_s", hidden))


def greedy_order(imagined: Tensor, found: Tensor) -> list[list[int]]:
    """For every image, which slot each imagined one takes; means `[B, K, D]`."""
    orders = []
    for wanted, given in zip(imagined.detach(), found, strict=True):
        free, order = list(range(len(given))), []
        for mean in wanted:
            order.append(min(free, key=lambda j: (mean - given[j]).norm().item()))
            free.remove(order[-1])
        orders.append(order)
    return orders


def sri(w: State, images: Tensor, noise: FixtureNoise, num_slots: int, std: float = 0.7) -> Values:
    size, batch = images.shape[-1], len(images)
    scores = noise.uniform((batch, 1, size, size), images)
    values, posterior = v2_encoder(w, "genesisv2.", images, scores, num_slots)
    deviations = images.new_full((num_slots,), std)
    epsilon = torch.stack([noise.normal((batch, posterior[0].shape[2]), images) for _ in range(num_slots)], 1)
    z = posterior[0] + posterior[1] * epsilon
    error = mixture_error(images, *v2_decoder(w, "genesisv2.decoder_module", z, size), deviations)
    kl = sampled_kl(z, posterior, standard(z)).sum(1)

    scene = scene_posterior(w, z.detach())
    s = scene[0] + scene[1] * noise.normal(scene[0].shape, images)
    projected = gelu(linear(w, "prior_lstm.scene_encoder.0", s))
    given, state, rollout = projected, None, []
    for k in range(num_slots):
        hidden, state = lstm(w, "prior_lstm.lstm", given, state)
        mean, scale = linear(w, "prior_lstm.mu", hidden), variance_scale(linear(w, "prior_lstm.sp", hidden))
        given = mean + scale * epsilon[:, k]
        rollout.append((mean, scale))
    imagined = torch.stack([mean for mean, _ in rollout], 1), torch.stack([scale for _, scale in rollout], 1)
    order = greedy_order(imagined[0], posterior[0].detach())
    means = torch.stack([row[o] for row, o in zip(posterior[0].detach(), order, strict=True)])

    given, state, scales = gelu(linear(w, "posterior_lstm.scene_encoder.0", s)), None, []
    for k in range(num_slots):
        hidden, state = lstm(w, "posterior_lstm.lstm", given, state)
        scales.append(variance_scale(linear(w, "posterior_lstm.sp", hidden)))
        given = means[:, k]
    ordered = means, torch.stack(scales, 1)
    slots = means + ordered[1] * epsilon
    given, state, prior = projected, None, []
    for k in range(num_slots):
        hidden, state = lstm(w, "prior_lstm.lstm", given, state)
        mean, scale = linear(w, "prior_lstm.mu", hidden), variance_scale(linear(w, "prior_lstm.sp", hidden))
        prior.append((mean, scale))
        given = slots[:, k]
    taught = torch.stack([mean for mean, _ in prior], 1), torch.stack([scale for _, scale in prior], 1)
    components, masks = v2_decoder(w, "decoder", slots, size)
    values = {
        "mean": means,
        "scale": ordered[1],
        "scene mean": scene[0],
        "scene scale": scene[1],
        "order": torch.tensor(order),
        "components": components,
        "masks": masks,
        "error of segregation": error,
        "kl of segregation": kl,
        "error": mixture_error(images, components, masks, deviations),
        "scene kl": analytic_kl(scene, standard(s)),
        "cross-order kl": analytic_kl(ordered, imagined).sum(1),
        "slot kl": analytic_kl(ordered, taught).sum(1),
    }
    terms = ("error of segregation", "kl of segregation", "error", "scene kl", "cross-order kl", "slot kl")
    return values | {"loss": torch.stack([values[name].mean() for name in terms]).sum()}


# ---------------------------------------------------------------- EfficientMORL


def position(w: State, name: str, size: int, like: Tensor) -> Tensor:
    """Projection `[S, S, D]` of the position map."""
    fraction = torch.arange(size).to(like) / (size - 1)
    row, column = fraction[:, None].expand(size, size), fraction[None, :].expand(size, size)
    return linear(w, name, torch.stack([1.0 - row, row, column, 1.0 - column], 2))


def gru(w_input: tuple[Tensor, Tensor], w_hidden: tuple[Tensor, Tensor], x: Tensor, h: Tensor) -> Tensor:
    """Weights and biases of rows reset, update, candidate."""
    of_input = (x @ w_input[0].T + w_input[1]).chunk(3, dim=1)
    of_hidden = (h @ w_hidden[0].T + w_hidden[1]).chunk(3, dim=1)
    reset, update = ((a + b).sigmoid() for a, b in zip(of_input[:2], of_hidden[:2], strict=True))
    candidate = (of_input[2] + reset * of_hidden[2]).tanh()
    return (1.0 - update) * candidate + update * h


def dual_gru(w: State, half: int, x: Tensor, h: Tensor) -> Tensor:
    """One half of the cell."""
    cell, size = "hvae_networks.gru.cell", h.shape[1]

    def rows(gates: str, candidate: str) -> tuple[Tensor, Tensor]:
        weight = torch.cat(
            [w[f"{cell}.weight_{gates}_{half + 1}"], w[f"{cell}.weight_{candidate}_{half + 1}"]]
        )
        of_gates = w[f"{cell}.bias_{gates}"][2 * size * half : 2 * size * (half + 1)]
        of_candidate = w[f"{cell}.bias_{candidate}"][size * half : size * (half + 1)]
        return weight, torch.cat([of_gates, of_candidate])

    return gru(rows("ih", "in"), rows("hh", "hn"), x, h)


def emorl_decoder(w: State, z: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Components and masks of slots `[B, K, D]`."""
    stem = "hvae_networks.image_decoder"
    iodine = f"{stem}.decode.8.weight" in w
    side = size + (10 if iodine else 6)
    maps = z.flatten(0, 1)[:, None, None, :] + position(w, f"{stem}.pos_embed_projection", side, z)
    maps = maps.permute(0, 3, 1, 2)
    last = 8 if iodine else 6
    for i in range(0, last, 2):
        maps = conv(w, f"{stem}.decode.{i}", maps, padding=0 if iodine else 1)
        maps = elu(maps) if iodine else maps.relu()
    raw = conv(w, f"{stem}.decode.{last}", maps, padding=0 if iodine else 1).unflatten(0, z.shape[:2])
    return raw[:, :, :3].sigmoid(), raw[:, :, 3:].softmax(1)


def posterior_of(parameters: Tensor) -> Gaussian:
    mean, raw = parameters.chunk(2, dim=-1)
    return mean, variance_scale(raw)


def layer_prior(w: State, z: Tensor) -> Gaussian:
    stem = "hvae_networks.indep_prior"
    hidden = elu(linear(w, f"{stem}.z_linear.0", z))
    return linear(w, f"{stem}.z_mu", hidden), variance_scale(linear(w, f"{stem}.z_softplus", hidden))


def bottom_up(
    w: State, images: Tensor, num_slots: int, draw: Callable[[Gaussian], Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Parameters `[B, K, 2 D]` of three layers, and the last attention; does not draw of the last layer."""
    h, batch = "hvae_networks", len(images)
    x = 2.0 * images - 1.0
    for i in (0, 2, 4, 6):
        x = conv(w, f"{h}.encoder_pt_1.{i}", x, padding=2).relu()
    x = x.permute(0, 2, 3, 1) + position(w, f"{h}.pos_embed_projection", x.shape[-1], x)
    x = layer_norm(w, f"{h}.encoder_pt_2.0", x.flatten(1, 2))
    x = linear(w, f"{h}.encoder_pt_2.3", linear(w, f"{h}.encoder_pt_2.1", x).relu())
    key, value = linear(w, f"{h}.to_k", x), linear(w, f"{h}.to_v", x)
    parameters = w[f"{h}.init_posterior"].reshape(-1).expand(batch, num_slots, -1)
    layers, attention = list[Tensor](), key
    for _ in range(3):
        slots = draw(posterior_of(parameters))
        query = linear(w, f"{h}.to_q", layer_norm(w, f"{h}.norm_slots", slots)) / math.sqrt(slots.shape[2])
        attention = (key @ query.transpose(1, 2)).softmax(2)  # [B, N, K]
        weights = (attention + 1e-8) / (attention + 1e-8).sum(1, keepdim=True)
        update = (weights.transpose(1, 2) @ value).flatten(0, 1)
        halves = []
        for half, name in enumerate(("mu", "softplus")):
            state = dual_gru(w, half, update, parameters.chunk(2, dim=2)[half].flatten(0, 1))
            hidden = linear(w, f"{h}.mlp_{name}.0", layer_norm(w, f"{h}.norm_{name}_pre_ff", state)).relu()
            halves.append(state + linear(w, f"{h}.mlp_{name}.2", hidden))
        parameters = torch.cat(halves, 1).unflatten(0, (batch, num_slots))
        layers.append(parameters)
    return layers, attention.transpose(1, 2).unflatten(2, images.shape[2:]).unsqueeze(2)


def emorl(
    w: State, images: Tensor, noise: SineNoise, num_slots: int, refinements: int, mixture: bool, std: float
) -> Values:
    """The last step's values, and the total; not the density but its part without `log √2π`."""
    constant = 0.5 * math.log(2.0 * math.pi) * images[0].numel()

    def draw(posterior: Gaussian) -> Tensor:
        return posterior[0] + posterior[1] * noise.normal(tuple(posterior[0].shape), images)

    def decode(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        components, masks = emorl_decoder(w, z, images.shape[-1])
        if mixture:
            deviations = images.new_full((num_slots,), std)
            return components, masks, mixture_error(images, components, masks, deviations) - constant
        squared = (images - (components * masks).sum(1)).square().sum((1, 2, 3))
        return components, masks, squared / (2.0 * std**2) + math.log(std) * images[0].numel()

    layers, attention = bottom_up(w, images, num_slots, draw)
    parameters = layers[-1]
    components, masks, error = decode(draw(posterior_of(parameters)))
    prior = standard(posterior_of(parameters)[0])
    kl = analytic_kl(posterior_of(parameters), prior).sum(1)
    for below in (1, 0):
        prior = layer_prior(w, draw(posterior_of(layers[below + 1])))
        kl = kl + analytic_kl(posterior_of(layers[below]), prior).sum(1)
    losses, state = [(error + kl).mean()], None
    for _ in range(refinements):
        (gradient,) = torch.autograd.grad(losses[-1], parameters, retain_graph=True)
        direction = torch.cat([normalise(half, (-1,)) for half in gradient.chunk(2, dim=2)], 2)
        code = torch.cat([parameters, direction], 2).flatten(0, 1)
        code = linear(w, "refinenet.encoding.2", elu(linear(w, "refinenet.encoding.0", code)))
        stem = "refinenet.recurrence"
        of_input, of_hidden = (
            (w[f"{stem}.weight_{kind}_l0"], w[f"{stem}.bias_{kind}_l0"]) for kind in ("ih", "hh")
        )
        state = gru(of_input, of_hidden, code, torch.zeros_like(code) if state is None else state)
        change = torch.cat([linear(w, f"refinenet.{name}", state) for name in ("loc", "softplus")], 1)
        parameters = parameters + change.view_as(parameters)
        components, masks, error = decode(draw(posterior_of(parameters)))
        kl = analytic_kl(posterior_of(parameters), prior).sum(1)
        losses.append((error + kl).mean())
    weights = [(refinements + 3 - i) / (refinements + 1) for i in range(refinements + 1)]
    mean, scale = posterior_of(parameters)
    values = {"mean": mean, "scale": scale, "components": components, "masks": masks, "error": error}
    total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
    return values | {"attention masks": attention, "kl": kl, "loss": total}
