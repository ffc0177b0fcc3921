"""The published MONet implementation's own numbers (specification §9.4, §9.6, §12.4, §12.7)."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lightning_genesis.models import MONet
from lightning_genesis.objectives import gaussian_kl, sampled_gaussian_kl
from tests.compare import GRADIENT, TOTAL, assert_near, statistics
from tests.models.monet_fixture import Step, fixture_model, training_step
from tests.reference.monet import SlotMajorNoise


def slot_kl(step: Step, analytic: bool) -> Tensor:
    """KL of every slot, `[B, K]`."""
    mean, scale, sample = (step.scene.latents[name].detach() for name in ("mean", "scale", "sample"))
    standard = torch.zeros_like(mean), torch.ones_like(mean)
    return (
        gaussian_kl(mean, scale, *standard)
        if analytic
        else sampled_gaussian_kl(sample, mean, scale, *standard)
    )


@pytest.fixture(scope="module")
def activations() -> dict[str, list[Tensor]]:
    """Outputs of the modules by name, one for every pass; filled by `step`."""
    return {"down.0": [], "logit": []}


@pytest.fixture(scope="module")
def step(activations: dict[str, list[Tensor]]) -> Iterator[Step]:
    model = fixture_model()
    attention = model.network.attention
    assert attention is not None
    handles = [
        module.register_forward_hook(
            lambda _, __, output, name=name: activations[name].append(output.detach().clone())
        )
        for name, module in (("down.0", attention.unet.down[0]), ("logit", attention.logit))
    ]
    yield training_step(model)
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module")
def original() -> Step:
    """Scope masks, KL in closed form, two standard deviations."""
    return training_step(fixture_model(mask_prior="scope", analytic_kl=True, std=0.11, background_std=0.09))


# ---------------------------------------------------------------- parameter counts


@pytest.mark.parametrize(("image_size", "expected"), [(32, 749_701), (64, 974_085), (128, 1_788_293)])
@pytest.mark.parametrize("num_slots", [3, 7])
def test_number_of_parameters(num_slots: int, image_size: int, expected: int) -> None:
    assert sum(p.numel() for p in MONet(num_slots, image_size).parameters()) == expected


def test_number_of_parameters_by_part() -> None:
    network = MONet(7, 64).network
    assert network.attention is not None
    vae = network.component_vae
    parts = {"attention": network.attention, "encoder": vae.encoder, "decoder": vae.decoder}
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == {
        "attention": 604_513,
        "encoder": 336_480,
        "decoder": 33_092,
    }


# ---------------------------------------------------------------- attention


def test_attention_network(step: Step, activations: dict[str, list[Tensor]]) -> None:
    assert len(activations["logit"]) == 4  # one pass for every slot but the last
    assert_near(statistics(activations["down.0"][0]), [0.403472, 0.587488])
    assert_near(statistics(activations["logit"][0]), [0.332776, 0.565454])
    assert_near(activations["logit"][0][0, 0, 0, :3], [0.393341, -0.530283, -0.173047])


def test_attention_masks(step: Step) -> None:
    log_masks = step.scene.attention_log_masks
    assert log_masks is not None
    assert_near(log_masks[0].exp().mean(dim=(1, 2, 3)), [0.576768, 0.23197, 0.0997223, 0.0453697, 0.0461699])
    assert_near(log_masks[1, :, 0, 30, 40], [-0.573599, -1.30111, -2.29672, -3.3796, -3.51908])
    assert torch.equal(log_masks, step.scene.log_masks)


# ---------------------------------------------------------------- component VAE


def test_decoded_masks(step: Step) -> None:
    log_masks = step.scene.log_masks_of("decoded")
    assert_near(log_masks[1, :, 0, 30, 40], [-1.48744, -2.00546, -1.70882, -1.58967, -1.36893])


def test_posterior(step: Step) -> None:
    assert_near(step.scene.latents["mean"][0, 0, :4], [-0.164391, 0.076037, 0.0433315, -0.264616])
    assert_near(step.scene.latents["scale"][0, 0, :4], [1.11775, 0.989454, 0.93921, 0.881309])


def test_reconstruction_is_mixed_by_attention(step: Step) -> None:
    assert_near(step.scene.reconstruction.mean(dim=(1, 2, 3)), [0.498905, 0.465935])
    assert_near(step.scene.reconstruction[0, :, 10, 20], [0.562865, 0.537697, 0.424222])


# ---------------------------------------------------------------- terms


def test_terms(step: Step) -> None:
    assert_near(step.terms.nll, [8026.68, 8056.96], TOTAL)
    assert_near(step.terms.kl["mask"], [1757.42, 2138.78])
    kl = slot_kl(step, analytic=False)
    assert_near(kl[0], [0.348322, -0.496213, 1.59112, -1.33272, -0.129458])
    assert_near(kl[1], [1.1848, 0.524284, 1.77421, 1.36648, 2.02802])
    assert_near(step.terms.kl["latent"], kl.sum(dim=1))


def test_loss_and_gradients(step: Step) -> None:
    assert_near(step.loss, 9993.35, TOTAL)
    assert_near(step.gradient_norm, 9619.13, GRADIENT)


def test_original_options(original: Step) -> None:
    assert_near(original.terms.nll, [32261.9, 33495.4], TOTAL)
    assert_near(original.terms.kl["mask"], [718.897, 895.343])
    kl = slot_kl(original, analytic=True)
    assert_near(kl[0], [0.243762, 0.255643, 0.348303, 0.517667, 0.648993])
    assert_near(kl[1], [0.190069, 0.283452, 0.437539, 0.691519, 0.843586])
    assert_near(original.terms.kl["latent"], kl.sum(dim=1))


def test_sample(step: Step) -> None:
    picture = step.model.sample(2, noise=SlotMajorNoise()).reconstruction
    assert_near(picture.mean(dim=(1, 2, 3)), [0.499606, 0.478809])
    assert_near(picture[1, :, 5, 50], [0.548964, 0.530835, 0.372696])


def test_sample_of_scope_masks(original: Step) -> None:
    picture = original.model.sample(2, noise=SlotMajorNoise()).reconstruction
    assert_near(picture.mean(dim=(1, 2, 3)), [0.499791, 0.474483])


# ---------------------------------------------------------------- other sizes


@pytest.mark.parametrize(
    ("image_size", "err", "loss", "norm"),
    [
        (32, [2012.3, 2008.82], 2149.94, 1358.78),
        (128, [32098.6, 32145.6], 34004.8, 20242.3),
    ],
)
def test_other_sizes(image_size: int, err: list[float], loss: float, norm: float) -> None:
    step = training_step(fixture_model(3, image_size))
    assert_near(step.terms.nll, err, TOTAL)
    assert_near(step.loss, loss, TOTAL)
    assert_near(step.gradient_norm, norm, GRADIENT)
