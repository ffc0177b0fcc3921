"""The published GENESIS, GENESIS-S, GENESIS-V2, MONet and VAEs, written out from their specification.

Each function takes the official parameters, images and the fixture's noise and returns by name what the model
computes, nats per image and slot. `loss` is `mean error + mean KL`, of which gradients are taken.
"""

from typing import Any

import torch
from torch import Tensor

from tests.reference import FixtureNoise
from tests.reference.blocks import (
    Gaussian,
    State,
    analytic_kl,
    batch_norm,
    broadcast,
    conv,
    coordinates,
    group_norm,
    instance_norm,
    layer_norm,
    learned_prior,
    linear,
    log_normal,
    lstm,
    mixture_error,
    sampled_kl,
    slot_priors,
    softplus_scale,
    standard,
    stick_breaking,
    straight_through_clamp,
    unet,
)

Values = dict[str, Tensor]
STRIDES = {32: (1, 2, 1, 2, 1), 64: (1, 2, 1, 2, 1), 128: (2, 2, 2, 1, 1)}
"""Of the gated encoders, by the side of the images."""


def mask_kl(attention: Tensor, decoded: Tensor) -> Tensor:
    """KL of clamped and renormalised masks `[B, K, 1, S, S]`, summed over pixels."""
    q, p = (masks.clamp_min(1e-5) for masks in (attention, decoded))
    q, p = q / q.sum(1, keepdim=True), p / p.sum(1, keepdim=True)
    return (q * (q.log() - p.log())).sum((1, 2, 3, 4))


# ---------------------------------------------------------------- GENESIS-V2


def kernel_value(kernel: str, squared: Tensor, sigma: Tensor) -> Tensor:
    if kernel == "gaussian":
        alpha = (-squared / sigma).exp()
    elif kernel == "laplacian":
        alpha = (-straight_through_clamp(squared, 1e-10, 1e10).sqrt() / sigma).exp()
    else:
        alpha = (1.0 - squared / sigma).relu()
    return straight_through_clamp(alpha, 0.01, 0.99)


def instance_colouring(embeddings: Tensor, scores: Tensor, sigma: Tensor, steps: int, kernel: str) -> Tensor:
    """Masks `[B, steps + 1, 1, S, S]`."""
    scope, masks = torch.ones_like(scores), []
    for _ in range(steps):
        flat = (scores * scope).flatten(1)
        seeds = [maps.flatten(1)[:, int(i)] for maps, i in zip(embeddings, flat.argmax(1), strict=True)]
        squared = (embeddings - torch.stack(seeds)[:, :, None, None]).square().sum(1, keepdim=True)
        alpha = kernel_value(kernel, squared, sigma)
        masks.append(scope * alpha)
        scope = scope * (1.0 - alpha)
    return torch.stack([*masks, scope], 1)


def v2_encoder(
    w: State, prefix: str, images: Tensor, scores: Tensor, num_slots: int, kernel: str = "gaussian"
) -> tuple[Values, Gaussian]:
    """Embeddings and masks, and mean and scale `[B, K, D]` of the slots."""
    features = unet(w, f"{prefix}encoder", images, "group")
    head = group_norm(w, f"{prefix}seg_head.1", conv(w, f"{prefix}seg_head.0", features, padding=1)).relu()
    colour = f"{prefix}att_process.colour_head"
    if f"{colour}.gate.gate" in w:
        embeddings = w[f"{colour}.gate.gate"] * conv(w, f"{colour}.conv", head)
        grid = coordinates(images.shape[-1], images)
        embeddings = embeddings + torch.cat([torch.zeros_like(grid).repeat(3, 1, 1), grid])
    else:
        embeddings = conv(w, colour, head)
    sigma = w[f"{prefix}att_process.log_sigma"].exp()
    masks = instance_colouring(embeddings, scores, sigma, num_slots - 1, kernel)
    maps = group_norm(w, f"{prefix}feat_head.0.1", conv(w, f"{prefix}feat_head.0.0", features, padding=1))
    maps = conv(w, f"{prefix}feat_head.1", maps.relu())
    means, scales = [], []
    for k in range(num_slots):
        pooled = (masks[:, k] * maps).sum((2, 3)) / (masks[:, k].sum((2, 3)) + 1e-5)
        hidden = linear(w, f"{prefix}z_head.1", layer_norm(w, f"{prefix}z_head.0", pooled)).relu()
        mean, raw = linear(w, f"{prefix}z_head.3", hidden).chunk(2, dim=1)
        means.append(mean)
        scales.append(softplus_scale(raw))
    values = {"features": features, "embeddings": embeddings, "attention masks": masks}
    return values, (torch.stack(means, 1), torch.stack(scales, 1))


def v2_decoder(w: State, stem: str, slots: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Components `[B, K, 3, S, S]` and masks `[B, K, 1, S, S]` of slots `[B, K, D]`."""
    outputs = []
    for z in slots.unbind(1):
        maps = broadcast(z, size // 16)
        for i in (1, 4, 7, 10):
            weight, bias = w[f"{stem}.{i}.weight"], w[f"{stem}.{i}.bias"]
            maps = torch.nn.functional.conv_transpose2d(maps, weight, bias, 2, 2, 1)
            maps = group_norm(w, f"{stem}.{i + 1}", maps).relu()
        outputs.append(conv(w, f"{stem}.13", maps))
    raw = torch.stack(outputs, 1)
    return raw[:, :, :3].sigmoid(), raw[:, :, 3:].softmax(1)


def genesis_v2(
    w: State,
    images: Tensor,
    noise: FixtureNoise,
    num_slots: int,
    kernel: str = "gaussian",
    std: float = 0.7,
    consistency: str = "",
) -> Values:
    """`consistency` adds the mask KL: "attention" to train the attention masks alone, or "both"."""
    size = images.shape[-1]
    scores = noise.uniform((len(images), 1, size, size), images)
    values, (mean, scale) = v2_encoder(w, "", images, scores, num_slots, kernel)
    epsilon = torch.stack([noise.normal(mean[:, k].shape, mean) for k in range(num_slots)], 1)
    sample = mean + scale * epsilon
    components, masks = v2_decoder(w, "decoder_module", sample, size)
    error = mixture_error(images, components, masks, images.new_full((num_slots,), std))
    kl = sampled_kl(sample, (mean, scale), slot_priors(w, sample))
    of_masks = mask_kl(values["attention masks"], masks.detach() if consistency == "attention" else masks)
    loss = error.mean() + kl.sum(1).mean()
    values |= {"mean": mean, "scale": scale, "components": components, "masks": masks}
    values |= {"error": error, "kl": kl, "mask kl": of_masks}
    return values | {"loss": loss + of_masks.mean() if consistency else loss}


# ---------------------------------------------------------------- gated convolutions


def gated(w: State, name: str, raw: Tensor, norm: str, training: bool) -> Tensor:
    """Value times gate of the output of a layer's convolution."""
    value, gate = raw.chunk(2, dim=1)
    if f"{name}.h_norm.weight" in w:
        if norm == "batch":
            value = batch_norm(w, f"{name}.h_norm", value, training)
            gate = batch_norm(w, f"{name}.g_norm", gate, training)
        else:
            value, gate = instance_norm(w, f"{name}.h_norm", value), instance_norm(w, f"{name}.g_norm", gate)
    return value * gate.sigmoid()


def gated_encoder(w: State, stem: str, x: Tensor, strides: tuple[int, ...], norm: str, train: bool) -> Tensor:
    for i, stride in enumerate(strides):
        raw = conv(w, f"{stem}.{i}.conv", x, stride, 2)
        x = gated(w, f"{stem}.{i}", raw, norm, train)
    return gated(w, f"{stem}.5", conv(w, f"{stem}.5.conv", x), norm, train).flatten(1)


def gated_decoder(w: State, stem: str, z: Tensor, strides: tuple[int, ...], norm: str, train: bool) -> Tensor:
    x = z[:, :, None, None]
    for i, stride in enumerate((1, *strides[::-1])):
        weight, bias = w[f"{stem}.{i}.conv.weight"], w[f"{stem}.{i}.conv.bias"]
        padding = 2 if i else 0
        raw = torch.nn.functional.conv_transpose2d(x, weight, bias, stride, padding, stride - 1)
        x = gated(w, f"{stem}.{i}", raw, norm, train)
    return x


def broadcast_decoder(w: State, stem: str, z: Tensor, size: int, act: Any) -> Tensor:
    x = broadcast(z, size + 8)
    for i in (1, 3, 5, 7):
        x = act(conv(w, f"{stem}.{i}", x))
    return conv(w, f"{stem}.9", x)


def component_encoder(w: State, images: Tensor, log_mask: Tensor, act: Any) -> Gaussian:
    stem = "comp_vae.encoder_module.module"
    x = torch.cat([log_mask, images], 1)
    for i in (0, 2, 4, 6):
        x = act(conv(w, f"{stem}.{i}", x, 2, 1))
    mean, raw = linear(w, f"{stem}.11", act(linear(w, f"{stem}.9", x.flatten(1)))).chunk(2, dim=1)
    return mean, softplus_scale(raw)


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x.clamp(max=0.0).exp() - 1.0)


# ---------------------------------------------------------------- GENESIS and GENESIS-S


def mask_posterior(w: State, h: Tensor, noise: FixtureNoise, num_slots: int) -> tuple[Tensor, Gaussian]:
    """Samples, and means and scales, each `[B, K, D]`, one after the other."""
    mean = linear(w, "att_process.core.q_z_mean", h)
    scale = softplus_scale(linear(w, "att_process.core.q_z_var.0", h))
    samples, means, scales, state = [], [], [], None
    for k in range(num_slots):
        if k:
            hidden, state = lstm(w, "att_process.lstm", torch.cat([h, samples[-1]], 1), state)
            mean, raw = linear(w, "att_process.linear", hidden).chunk(2, dim=1)
            scale = softplus_scale(raw)
        samples.append(mean + scale * FixtureNoise.normal(noise, mean.shape, mean))
        means.append(mean)
        scales.append(scale)
    return torch.stack(samples, 1), (torch.stack(means, 1), torch.stack(scales, 1))


def genesis(
    w: State,
    images: Tensor,
    noise: FixtureNoise,
    num_slots: int,
    norm: str = "batch",
    training: bool = True,
    std: float = 0.7,
) -> Values:
    """GENESIS, or GENESIS-S where the state has its `decoder`; at least two slots."""
    batch, size = len(images), images.shape[-1]
    strides, core = STRIDES[size], "att_process.core"
    h = gated_encoder(w, f"{core}.q_z_nn", images, strides, norm, training)
    z, posterior = mask_posterior(w, h, noise, num_slots)
    folded = z.transpose(0, 1).flatten(0, 1)  # slot-major: slots share the batch's statistics
    raw = conv(w, f"{core}.p_x_mean", gated_decoder(w, f"{core}.p_x_nn", folded, strides, norm, training))
    logits = list(raw.unflatten(0, (num_slots, batch)))
    masks = stick_breaking(logits[:-1])
    of_masks = sampled_kl(z, posterior, slot_priors(w, z))
    values = {"h": h, "logits": torch.stack(logits, 1), "masks": masks, "mask mean": posterior[0]}
    values |= {"mask scale": posterior[1], "mask kl": of_masks}
    kl = of_masks
    if "decoder.seq.1.weight" in w:
        raw = broadcast_decoder(w, "decoder.seq", folded, size, elu)
    else:
        tiled = images.repeat(num_slots, 1, 1, 1)
        log_masks = masks.log().transpose(0, 1).flatten(0, 1)
        if "comp_vae.encoder_module.0.0.conv.weight" in w:
            x = torch.cat([log_masks, tiled], 1)
            x = gated_encoder(w, "comp_vae.encoder_module.0", x, STRIDES[64], norm, training)
            mean, raw = x.chunk(2, dim=1)
            scale = softplus_scale(raw)
        else:
            mean, scale = component_encoder(w, tiled, log_masks, elu)
        epsilon = noise.normal((batch, num_slots, mean.shape[1]), mean).transpose(0, 1).flatten(0, 1)
        sample = mean + scale * epsilon
        prior = standard(mean)
        if "prior_mlp.0.weight" in w:
            hidden = elu(linear(w, "prior_mlp.2", elu(linear(w, "prior_mlp.0", folded))))
            prior = learned_prior(linear(w, "prior_mlp.4", hidden))
        of_components = sampled_kl(sample, (mean, scale), prior).view(num_slots, batch).T
        values["component mean"] = mean.unflatten(0, (num_slots, batch)).transpose(0, 1)
        values["component scale"] = scale.unflatten(0, (num_slots, batch)).transpose(0, 1)
        values["component kl"] = of_components
        kl = kl + of_components
        if "comp_vae.decoder_module.2.weight" in w:
            x = gated_decoder(w, "comp_vae.decoder_module.1", sample, STRIDES[64], norm, training)
            raw = conv(w, "comp_vae.decoder_module.2", x)
        else:
            raw = broadcast_decoder(w, "comp_vae.decoder_module.seq", sample, size, elu)
    components = raw.sigmoid().unflatten(0, (num_slots, batch)).transpose(0, 1)
    error = mixture_error(images, components, masks, images.new_full((num_slots,), std))
    loss = error.mean() + kl.sum(1).mean()
    return values | {"components": components, "error": error, "loss": loss}


# ---------------------------------------------------------------- MONet


def monet(
    w: State,
    images: Tensor,
    noise: FixtureNoise,
    num_slots: int,
    scope_prior: bool = False,
    analytic: bool = False,
    std: float = 0.7,
    background_std: float = 0.7,
) -> Values:
    size = images.shape[-1]
    scope, attention, logits = torch.ones_like(images[:, :1]), [], []
    for _ in range(num_slots - 1):
        x = torch.cat([images, scope.log()], 1)
        logits.append(conv(w, "att_process.core.final_conv", unet(w, "att_process.core", x, "instance")))
        attention.append(scope * logits[-1].sigmoid())
        scope = scope * (1.0 - logits[-1].sigmoid())
    masks = torch.stack([*attention, scope], 1)
    pairs = [component_encoder(w, images, masks[:, k].log(), torch.relu) for k in range(num_slots)]
    mean, scale = (torch.stack(part, 1) for part in zip(*pairs, strict=True))
    sample = mean + scale * noise.normal(mean.shape, mean)
    decoded = [
        broadcast_decoder(w, "comp_vae.decoder_module.seq", z, size, torch.relu) for z in sample.unbind(1)
    ]
    raw = torch.stack(decoded, 1)
    components = raw[:, :, :3].sigmoid()
    last = raw[:, :, 3:]
    decoded_masks = stick_breaking(list(last[:, :-1].unbind(1))) if scope_prior else last.softmax(1)
    deviations = images.new_tensor([background_std] + [std] * (num_slots - 1))
    error = mixture_error(images, components, masks, deviations)
    prior = standard(mean)
    kl = analytic_kl((mean, scale), prior) if analytic else sampled_kl(sample, (mean, scale), prior)
    of_masks = mask_kl(masks, decoded_masks)
    values = {"logits": torch.stack(logits, 1), "masks": masks, "decoded masks": decoded_masks}
    values |= {"mean": mean, "scale": scale, "components": components, "error": error, "kl": kl}
    return values | {"mask kl": of_masks, "loss": error.mean() + (kl.sum(1) + of_masks).mean()}


# ---------------------------------------------------------------- VAEs


def vae(w: State, images: Tensor, noise: FixtureNoise, std: float = 0.7) -> Values:
    """The DC-VAE, or the BD-VAE where the state has its broadcast decoder."""
    size = images.shape[-1]
    h = gated_encoder(w, "vae.q_z_nn", images, STRIDES[size], "none", True)
    mean = linear(w, "vae.q_z_mean", h)
    scale = softplus_scale(linear(w, "vae.q_z_var.0", h))
    z = mean + scale * noise.normal(mean.shape, mean)
    if "vae.p_x_nn.1.seq.1.weight" in w:
        x = elu(broadcast_decoder(w, "vae.p_x_nn.1.seq", z, size, elu))
    else:
        x = gated_decoder(w, "vae.p_x_nn", z, STRIDES[size], "none", True)
    reconstruction = conv(w, "vae.p_x_mean", x).sigmoid()
    error = -log_normal(images, reconstruction, images.new_tensor(std)).sum((1, 2, 3))
    kl = sampled_kl(z, (mean, scale), standard(mean))
    values = {"h": h, "mean": mean, "scale": scale, "reconstruction": reconstruction}
    return values | {"error": error, "kl": kl, "loss": (error + kl).mean()}
