"""How the VAEs behave: what they accept, what depends on what, and what their numbers mean."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.counting import count_operations
from lightning_genesis.cli import main
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.interop.genesis import LEGACY
from lightning_genesis.interop.vae import vae_key
from lightning_genesis.models import VAE
from lightning_genesis.scene import IndexedNoise
from tests.models.test_counts import Count, Images
from tests.quick import few
from tests.reference.vae import official_keys

both = pytest.mark.parametrize("decoder", ["broadcast", "deconv"])


def small_model(decoder: str = "broadcast", image_size: int = 32, **options: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(image_size=image_size, **{"decoder": decoder, "latent_dim": 6, **options}).eval()


def batch_of(size: int, image_size: int = 32) -> Tensor:
    return torch.rand(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def noise_for(index: list[int]) -> IndexedNoise:
    return IndexedNoise(7, index)


# ---------------------------------------------------------------- output


@both
@pytest.mark.parametrize("image_size", few([32, 64, 96, 128], 32, 96))
def test_image_sizes(decoder: str, image_size: int) -> None:
    model, images = small_model(decoder, image_size).train(), batch_of(2, image_size)
    scene = model(images)
    assert scene.components.shape == (2, 1, 3, image_size, image_size)
    assert torch.equal(scene.log_masks, torch.zeros(2, 1, 1, image_size, image_size))
    assert torch.equal(scene.reconstruction, scene.components[:, 0])
    assert (scene.segmentation() == 0).all()
    assert {value.shape for value in scene.latents.values()} == {(2, 1, 6)}
    terms = model.loss_terms(scene, images)["vae"]
    (terms.nll + terms.total_kl).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@both
def test_largest_published_size(decoder: str) -> None:
    with torch.no_grad():
        assert small_model(decoder, 256)(batch_of(1, 256)).reconstruction.shape == (1, 3, 256, 256)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 48},
        {"image_size": 0},
        {"decoder": "linear"},
        {"latent_dim": 0},
        {"component_activation": "tanh"},
        {"std": -0.7},
        {"std": float("nan")},
        {"optimizer": "Adamm"},
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}.*: use ") as raised:
        VAE(**{"image_size": 32, **options})
    assert "\n" not in str(raised.value)


def test_it_has_one_slot_whatever_the_data_have() -> None:
    model = small_model(num_slots=7)
    assert model.num_slots == model.hparams["num_slots"] == 1
    assert VAE(**model.hparams).num_slots == 1
    with pytest.raises(ConfigurationError, match=r"num_slots=7: .*use 1"):
        model.sample(2, num_slots=7)


def test_linear_images_are_not_squashed() -> None:
    linear, sigmoid = small_model(component_activation="linear"), small_model()
    latents = 20.0 * torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(0))
    raw = linear.decode(latents).components
    assert raw.min() < 0.0
    torch.testing.assert_close(sigmoid.decode(latents).components, raw.sigmoid())


# ---------------------------------------------------------------- noise, batches, samples


@both
@torch.no_grad()
def test_result_depends_on_noise_but_neither_on_batch_nor_mode(decoder: str) -> None:
    """There is no normalisation, so training and evaluation are the same."""
    model, images = small_model(decoder), batch_of(4)
    whole = model(images, noise_for([4, 5, 6, 7])).reconstruction
    assert torch.equal(whole, model(images, noise_for([4, 5, 6, 7])).reconstruction)
    torch.testing.assert_close(model(images[1:2], noise_for([5])).reconstruction, whole[1:2])
    torch.testing.assert_close(model.train()(images, noise_for([4, 5, 6, 7])).reconstruction, whole)
    assert not torch.equal(model(images, noise_for([4, 5, 6, 8])).reconstruction[3], whole[3])


@both
@torch.no_grad()
def test_sample(decoder: str) -> None:
    model = small_model(decoder)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    scene = model.sample(3, temperature=0.5, noise=noise_for([0, 1, 2]))
    assert torch.equal(torch.get_rng_state(), state)
    draws = noise_for([0, 1, 2]).normal((3, 1, 6), scene.components)
    assert torch.equal(scene.latents["sample"], 0.5 * draws)
    torch.testing.assert_close(scene.components[:, 0], model.network.decoder(0.5 * draws[:, 0]).sigmoid())
    assert torch.equal(model.sample(2, temperature=0.0).latents["sample"], torch.zeros(2, 1, 6))


# ---------------------------------------------------------------- terms and bounds


@both
@torch.no_grad()
def test_log_weight_is_joint_minus_posterior(decoder: str) -> None:
    """Against torch.distributions, in float64; with one sample's KL the bound is the same."""
    model, images = small_model(decoder, std=0.3), batch_of(2)
    scene = model(images, noise_for([0, 1]))
    mean, scale, sample = (scene.latents[name].double() for name in ("mean", "scale", "sample"))
    pixels = torch.distributions.Normal(scene.reconstruction.double(), 0.3)
    expected = pixels.log_prob(images.double()).sum(dim=(1, 2, 3))
    prior, posterior = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(mean, scale)
    expected += (prior.log_prob(sample) - posterior.log_prob(sample)).sum(dim=(1, 2))
    found = model.log_weight(images, noise_for([0, 1]))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(model.elbo(scene, images), found)
    terms = model.loss_terms(scene, images)["vae"]
    torch.testing.assert_close(found, -terms.nll - terms.kl["latent"])


@torch.no_grad()
def test_analytic_kl_is_the_mean_of_the_sampled_one() -> None:
    model, images = small_model("deconv"), batch_of(1).expand(256, -1, -1, -1)
    scene = model(images)
    sampled, analytic = (model._latent_kl(scene, kind) for kind in (False, True))
    posterior = torch.distributions.Normal(scene.latents["mean"], scene.latents["scale"])
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(analytic, divergence.sum(dim=(1, 2)))
    error = sampled.std() / 16.0
    assert error > 0.0
    assert abs(sampled.mean() - analytic.mean()) < 4.0 * error
    exact = small_model("deconv", analytic_kl=True)
    assert torch.equal(exact.loss_terms(scene, images)["vae"].kl["latent"], analytic)


# ---------------------------------------------------------------- pieces, precision, compilation


@both
@torch.no_grad()
def test_pieces_make_the_whole(decoder: str) -> None:
    model, images = small_model(decoder), batch_of(2)
    scene, latents = model(images, noise_for([0, 1])), model.encode(images, noise_for([0, 1]))
    for name, value in latents.items():
        assert torch.equal(value, scene.latents[name])
    torch.testing.assert_close(model.decode(latents["sample"]).components, scene.components)


@both
def test_bfloat16_leaves_the_terms_in_float32(decoder: str) -> None:
    model, images = small_model(decoder).train(), batch_of(2)
    expected = model.loss_terms(model(images, noise_for([0, 1])), images)["vae"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scene = model(images, noise_for([0, 1]))
        found = model.loss_terms(scene, images)["vae"]
    for value in (scene.components, scene.log_masks, *scene.latents.values(), found.nll, found.total_kl):
        assert value.dtype == torch.float32
    torch.testing.assert_close(found.nll, expected.nll, rtol=2e-3, atol=0.0)
    torch.testing.assert_close(found.total_kl, expected.total_kl, rtol=0.1, atol=0.1)
    found.nll.mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len([*model.parameters()])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("decoder", few(["broadcast", "deconv"], "broadcast"))
def test_encoder_to_decoder_is_one_graph(decoder: str) -> None:
    torch._dynamo.reset()
    model, images = small_model(decoder).train(), batch_of(2)
    compiled = torch.compile(model.network.forward, backend="aot_eager", fullgraph=True)
    results = []
    for run in (model.network.forward, compiled):
        model.zero_grad()
        torch.manual_seed(5)
        components, latents = run(images, None)
        (components.sum() + latents["sample"].square().sum()).backward()
        results.append((components, model.get_parameter("network.encoder.layers.0.conv.weight").grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- a training step


@both
def test_nothing_waits_for_the_device(decoder: str) -> None:
    model, images = small_model(decoder).train(), batch_of(2)
    with count_operations() as counts:
        terms = model.loss_terms(model(images), images)
        model.objective(terms, num_dimensions=images[0].numel()).backward()
        model.objective.update()
    assert 100 < counts.kernels.total() <= 300  # 202 and 221
    assert not counts.syncs
    assert not counts.host_reads


@both
def test_steps_in_a_trainer_and_back(tmp_path: Path, decoder: str) -> None:
    before = {name: value.clone() for name, value in small_model(decoder).named_parameters()}
    model, count = small_model(decoder).train(), Count(1, 3)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[count],
        default_root_dir=tmp_path,
    )
    trainer.fit(model, DataLoader(Images(), batch_size=2))
    assert not count.running
    assert count.counts.kernels["_fused_adam_"] == 2
    assert not count.counts.syncs
    assert model.objective.step == 4
    assert not [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = VAE.load_from_checkpoint(tmp_path / "model.ckpt")
    images = batch_of(2)
    scenes = [each(images, noise_for([0, 1])) for each in (model, again)]
    assert torch.equal(scenes[0].reconstruction, scenes[1].reconstruction)
    assert torch.load(tmp_path / "model.ckpt", weights_only=True)["model_class"] == "VAE"


def test_command_on_data_with_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data link their number of slots to every model; this one has one, and no segmentation to score."""
    monkeypatch.chdir(tmp_path)
    sizes = {"image_size": 32, "train_size": 8, "val_size": 2, "test_size": 2, "batch_size": 2}
    config = {
        "model": {"class_path": "lightning_genesis.models.VAE", "init_args": {"decoder": "deconv"}},
        "data": {"class_path": "data_modules.MultiDSprites", "init_args": sizes},
        "trainer": {"max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1, "accelerator": "cpu"},
        "pictures": {"num_images": 2, "every": 2},
        "run": {"name": "vae", "wandb": False},
    }
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(config))
    quiet = ["--config", "vae.yaml", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *quiet]) == 0
    with open(tmp_path / "runs" / "vae" / "metrics.csv", newline="") as file:
        columns = next(csv.reader(file))
    assert {"train/nll", "train/kl", "val/elbo", "val/mse"} <= set(columns)
    assert not [name for name in columns if "ari" in name or "sc" in name.split("/")[-1]]
    assert (tmp_path / "runs" / "vae" / "checkpoints" / "best.ckpt").is_file()
    assert main(["test", *quiet, "--ckpt_path", "best", "--data.num_slots", "7"]) == 0


# ---------------------------------------------------------------- official names


@pytest.mark.parametrize(("decoder", "number"), [("deconv", 30), ("broadcast", 28)])
def test_names_are_a_bijection(decoder: str, number: int) -> None:
    keys = official_keys(decoder)
    ours = {vae_key(key) for key in keys}
    assert len(keys) == len(set(keys)) == len(ours) == number
    state = VAE(image_size=64, decoder=decoder).state_dict()  # type: ignore[arg-type]
    assert ours == {key for key in state if not key.startswith("objective.")}


@pytest.mark.parametrize(
    ("decoder", "official", "shape"),
    [
        ("deconv", "vae.q_z_nn.5.conv.weight", (512, 64, 16, 16)),
        ("deconv", "vae.q_z_var.0.weight", (64, 256)),
        ("deconv", "vae.p_x_nn.0.conv.weight", (64, 128, 16, 16)),
        ("deconv", "vae.p_x_mean.weight", (3, 32, 1, 1)),
        ("broadcast", "vae.p_x_nn.1.seq.1.weight", (64, 66, 3, 3)),
        ("broadcast", "vae.p_x_nn.1.seq.9.weight", (64, 64, 1, 1)),
        ("broadcast", "vae.p_x_mean.weight", (3, 64, 1, 1)),
    ],
)
def test_shapes_are_the_published_ones(decoder: str, official: str, shape: tuple[int, ...]) -> None:
    model = VAE(image_size=64, decoder=decoder)  # type: ignore[arg-type]
    assert model.state_dict()[vae_key(official)].shape == shape


@pytest.mark.parametrize(
    "key",
    ["std", "vae.p_x_nn.1.seq.0.pixel_coords.g_1", "vae.q_z_nn.6.conv.weight", "vae.p_x_nn.1.weight", ""],
)
def test_unknown_name(key: str) -> None:
    with pytest.raises(KeyError, match="no parameter of the official DC-VAE or BD-VAE"):
        vae_key(key)
    assert bool(re.match(LEGACY, key)) == ("pixel_coords" in key)
