"""How EfficientMORL behaves: what it accepts, what depends on what, and what its numbers mean."""

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader, Dataset

from benchmarks.counting import Counts, count_operations
from lightning_genesis.cli import main
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SRI, EfficientMORL, SceneModel
from lightning_genesis.models.emorl import PRIORS, Hierarchy
from lightning_genesis.objectives import GECO, FixedBeta, SoftplusGECO
from lightning_genesis.scene import IndexedNoise, Scene
from lightning_genesis.storage.checkpoint import read_checkpoint
from tests.quick import few

SMALL: dict[str, Any] = {"latent_dim": 6, "feature_dim": 8, "decoder_dim": 8, "std": 0.3}


def small_model(num_slots: int = 3, image_size: int = 12, **options: Any) -> EfficientMORL:
    """With weights large enough for everything to matter."""
    torch.manual_seed(0)
    model = EfficientMORL(num_slots, image_size, **{**SMALL, **options}).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return model


def batch_of(size: int, image_size: int = 12) -> Tensor:
    return torch.rand(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def noise_for(index: Sequence[int]) -> IndexedNoise:
    return IndexedNoise(7, index)


def loss_of(model: EfficientMORL, scene: Scene, images: Tensor) -> Tensor:
    return model.objective(model.loss_terms(scene, images), num_dimensions=images[0].numel())


def tensors_of(scene: Scene) -> list[Tensor]:
    found: list[Tensor] = []
    scene.map(lambda tensor: found.append(tensor) or tensor)
    return found


# ---------------------------------------------------------------- output


@pytest.mark.parametrize(
    ("image_size", "options"),
    [
        (12, {}),
        (35, {"decoder": "small", "likelihood": "gaussian"}),
        (32, {"decoder": "big", "decoder_stages": 2}),
        (12, {"num_layers": 1}),
        (12, {"prior": "reversed"}),
        (12, {"prior": "bottom_up", "num_layers": 2}),
        (12, {"num_slots": 1}),
    ],
)
def test_shapes_and_gradients(image_size: int, options: dict[str, Any]) -> None:
    model = small_model(image_size=image_size, **options).train()
    images, slots = batch_of(2, image_size), model.num_slots
    scene = model(images)
    assert scene.components.shape == (2, slots, 3, image_size, image_size)
    assert list(scene.auxiliary) == ["step_0", "step_1", "step_2"]
    assert scene.attention_log_masks is not None
    earlier = [step.log_masks for step in scene.auxiliary.values()]
    for log_masks in (scene.log_masks, scene.attention_log_masks, *earlier):
        assert log_masks.shape == (2, slots, 1, image_size, image_size)
        torch.testing.assert_close(log_masks.exp().sum(dim=1), torch.ones(2, 1, image_size, image_size))
    for name in ("mean", "scale", "sample", "prior_mean", "prior_scale"):
        assert scene.latents[name].shape == (2, slots, 6)
    assert scene.latents["nll"].shape == scene.latents["kl"].shape == (2, 4)
    assert (scene.latents["kl"] > 0.0).all()
    loss_of(model, scene, images).backward()
    for name, value in model.network.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "options",
    [
        {"num_slots": 0},
        {"image_size": 1},
        {"latent_dim": 0},
        {"feature_dim": 0},
        {"num_layers": 0},
        {"decoder": "large"},
        {"decoder_dim": 0},
        {"decoder_stages": 4, "decoder": "big"},
        {"prior": "forward"},
        {"num_refinements": -1},
        {"num_refinements": 1.5},
        {"final_refinements": -1},
        {"curriculum_steps": -1},
        {"refinement_batch_size": 0},
        {"likelihood": "laplace"},
        {"warmup_steps": -1},
        {"decay_rate": 0.0},
        {"decay_steps": -1},
        {"optimizer": "Adamm"},
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}.* use ") as raised:
        EfficientMORL(**{"num_slots": 3, "image_size": 12, **SMALL, **options})
    assert "\n" not in str(raised.value)


def test_defaults_are_the_published_ones() -> None:
    model = EfficientMORL(7, 96)
    objective: Any = model.objective
    assert isinstance(objective, SoftplusGECO)
    assert (objective.goal, objective.step_size, objective.warmup_steps) == (-2.206, 1e-6, 1000)
    assert (objective.speedup, objective.smoothing, objective.arguments["beta"]) == (1.0, 0.99, 0.55)
    configured: Any = model.configure_optimizers()
    assert isinstance(configured["optimizer"], torch.optim.Adam)
    assert configured["lr_scheduler"]["interval"] == "step"
    schedule = model.learning_rate_schedule()
    rates = {t: model.learning_rate * schedule(t) for t in (0, 5000, 10_100, 110_000, 300_000)}
    assert rates == pytest.approx(
        {0: 0.0, 5000: 2e-4, 10_100: 3.997228e-4, 110_000: 2e-4, 300_000: 5.358867e-5}, rel=1e-6
    )


def test_initial_values_are_the_published_ones() -> None:
    network = EfficientMORL(7, 96).network

    def std(weight: Tensor) -> float:
        return weight.detach().std().item()

    def glorot(fan_in: int, fan_out: int) -> float:
        return 0.02 * (2.0 / (fan_in + fan_out)) ** 0.5

    expected: list[tuple[Any, float]] = [
        (network.encoder[2], glorot(1600, 1600)),
        (network.pixel_mlp[1], glorot(64, 64)),
        (network.query, glorot(64, 64)),
        (network.mean_mlp[0], glorot(64, 128)),
        (network.decoder.layers[2], glorot(576, 576)),
        (network.decoder.position.projection, glorot(4, 64)),
        (network.layer_prior.hidden, glorot(64, 128)),
        (network.refinement.encoding[0], glorot(256, 128)),
        (network.refinement.mean, glorot(64, 64)),
    ]
    for layer, value in expected:
        assert std(layer.weight) == pytest.approx(value, rel=0.15)
        assert layer.bias is None or not layer.bias.any()
    for gru in (network.mean_gru, network.scale_gru):
        assert all(std(value) == pytest.approx(1.0, rel=0.15) for value in gru.parameters())
    recurrence = network.refinement.recurrence
    assert std(recurrence.weight_hh) == pytest.approx(3**-0.5 / 8, rel=0.05)
    assert std(network.position.projection.weight) == pytest.approx(0.5 * 3**-0.5, rel=0.15)
    assert network.initial_posterior.tolist() == [0.0] * 64 + [1.0] * 64
    assert {m.eps for m in network.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


def test_objective_of_the_users_choice_and_plain_hyperparameters() -> None:
    again = EfficientMORL(**small_model(objective=GECO(beta=0.5)).hparams)
    assert isinstance(again.objective, GECO)
    assert again.objective.arguments["beta"] == 0.5
    assert EfficientMORL(**small_model().hparams).objective.plain() == SoftplusGECO().plain()


# ---------------------------------------------------------------- mathematics


class Recorded:
    """Another source's noise, and the shapes it was asked for."""

    def __init__(self, noise: IndexedNoise) -> None:
        self.noise, self.draws = noise, list[Tensor]()

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        self.draws.append(self.noise.normal(shape, like))
        return self.draws[-1]

    uniform = normal


@pytest.mark.parametrize(
    ("prior", "num_layers", "num_refinements", "count"),
    [("reversed++", 3, 3, 9), ("reversed", 2, 1, 5), ("bottom_up", 3, 2, 8), ("reversed++", 1, 0, 2)],
)
@torch.no_grad()
def test_order_of_draws(prior: Any, num_layers: int, num_refinements: int, count: int) -> None:
    """Initial slots, every layer, L - 1 fresh ones that the priors are given, every refinement."""
    model, images = small_model(prior=prior, num_layers=num_layers), batch_of(2)
    noise = Recorded(noise_for([0, 1]))
    scene = model(images, noise, num_refinements=num_refinements)
    assert [draw.shape for draw in noise.draws] == [(2, 3, 6)] * count
    last = noise.draws[-1] if num_refinements else noise.draws[num_layers]
    latents = scene.latents
    torch.testing.assert_close(latents["sample"], latents["mean"] + latents["scale"] * last)


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_kl_of_all_layers_and_of_refined_slots(prior: Any) -> None:
    """Against torch's own distributions, one layer after the other."""
    model, images = small_model(prior=prior), batch_of(2)
    network = model.network
    noise = Recorded(noise_for([0, 1]))
    scene = model(images, noise, num_refinements=1)
    hierarchy = network.infer(images, noise_for([0, 1]), 3)

    def normal(parameters: Tensor) -> Normal:
        mean, raw = parameters.chunk(2, dim=-1)
        return Normal(mean, (raw.exp().log1p() + 1e-5).sqrt())

    layers = [normal(parameters) for parameters in hierarchy.parameters]
    standard = Normal(torch.zeros(2, 3, 6), torch.ones(2, 3, 6))
    if prior == "bottom_up":
        given = [layers[i].mean + layers[i].stddev * noise.draws[4 + i] for i in (0, 1)]
        priors = [standard, *(Normal(*network.layer_prior(z)) for z in given)]
    else:
        fresh = {
            layer: layers[layer].mean + layers[layer].stddev * noise.draws[6 - layer] for layer in (2, 1)
        }
        priors = [*(Normal(*network.layer_prior(fresh[layer])) for layer in (1, 2)), standard]
    divergences = [kl_divergence(q, p).sum(dim=(1, 2)) for q, p in zip(layers, priors, strict=True)]
    torch.testing.assert_close(scene.latents["kl"][:, 0], sum(divergences), rtol=1e-5, atol=1e-4)
    refined = Normal(scene.latents["mean"], scene.latents["scale"])
    against = priors[0] if prior == "reversed++" else standard
    expected = kl_divergence(refined, against).sum(dim=(1, 2))
    torch.testing.assert_close(scene.latents["kl"][:, 1], expected, rtol=1e-5, atol=1e-4)
    ladder = sum(divergences[1:]) if prior == "reversed++" else torch.zeros(2)
    torch.testing.assert_close(scene.latents["ladder_kl"], ladder, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("prior", PRIORS)
def test_refinement_sees_the_gradient_of_the_loss(prior: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against central differences in float64; every path leads through the parameters of layer L."""
    single = Tensor.float
    monkeypatch.setattr(Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x))
    model = small_model(image_size=6, prior=prior, refinement_batch_size=5).double().train()
    model.objective = FixedBeta(0.7)
    model.objective.bind(model.branches)
    images, seen = batch_of(2, 6).double(), list[Tensor]()
    model.network.refinement.register_forward_hook(lambda _, given, __: seen.append(given[1]))
    model(images, noise_for([0, 1]), num_refinements=1)
    infer, direction = model.network.infer, torch.randn(2, 3, 12, dtype=torch.float64)

    def loss(step: float) -> Tensor:
        def moved(*arguments: Any) -> Hierarchy:
            hierarchy = infer(*arguments)
            *rest, last = hierarchy.parameters
            return hierarchy._replace(parameters=[*rest, last + step * direction])

        monkeypatch.setattr(model.network, "infer", moved)
        latents = model(images, noise_for([0, 1]), num_refinements=0).latents
        return (latents["nll"] + 0.7 * latents["kl"]).sum() / 5

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    torch.testing.assert_close((seen[0] * direction).sum(), slope, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("count", "weights"),
    [(0, [3.0]), (1, [2.0, 1.5]), (2, [5 / 3, 4 / 3, 1.0]), (3, [1.5, 1.25, 1.0, 0.75])],
)
def test_weights_of_the_steps(count: int, weights: list[float]) -> None:
    model, images = small_model(objective=FixedBeta(0.5)).train(), batch_of(2)
    scene = model(images, num_refinements=count)
    term = model.loss_terms(scene, images)["emorl"]
    assert [step.weight for step in (*term.steps, term)] == pytest.approx(weights)
    assert torch.equal(term.nll, scene.latents["nll"][:, -1])
    expected = (scene.latents["nll"] + 0.5 * scene.latents["kl"]).mean(dim=0) @ torch.tensor(weights)
    torch.testing.assert_close(loss_of(model, scene, images), expected)


@pytest.mark.parametrize(
    ("prior", "num_refinements"), [(prior, count) for prior in PRIORS for count in (0, 2)]
)
@torch.no_grad()
def test_bound_is_the_mean_of_the_log_weights(prior: Any, num_refinements: int) -> None:
    """Both use the same samples; what is left has mean zero."""
    model = small_model(2, 4, prior=prior, final_refinements=num_refinements, std=1.0)
    images = batch_of(1, 4).expand(400, -1, -1, -1)
    noise = range(400)
    bound = model.elbo(model(images, noise_for(noise)), images)
    weights = model.log_weight(images, noise_for(noise))
    difference = weights - bound
    assert difference.std() > 0.1
    assert abs(difference.mean()) < 4 * difference.std() / 20


@torch.no_grad()
def test_samples_come_down_the_layers() -> None:
    model = small_model()
    noise = Recorded(noise_for([0, 1]))
    scene = model.sample(2, num_slots=5, temperature=0.5, noise=noise)
    z = 0.5 * noise.draws[0]
    for draw in noise.draws[1:]:
        mean, scale = model.prior(z)
        z = mean + 0.5 * scale * draw
    assert len(noise.draws) == 3
    torch.testing.assert_close(scene.latents["sample"], z)
    torch.testing.assert_close(scene.components, model.decode(z).components)
    single = small_model(prior="reversed").sample(2, noise=noise_for([0, 1]))
    assert torch.equal(single.latents["sample"], noise_for([0, 1]).normal((2, 3, 6), torch.zeros(())))


# ---------------------------------------------------------------- slots, batches, noise


class Shuffled:
    """The noise of another source with its slots in another order."""

    def __init__(self, noise: IndexedNoise, order: list[int]) -> None:
        self.noise, self.order = noise, order

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return self.noise.normal(shape, like)[:, self.order]

    uniform = normal


@torch.no_grad()
def test_order_of_slots_is_that_of_the_noise() -> None:
    model, images, order = small_model(num_slots=4, final_refinements=2), batch_of(2), [2, 3, 0, 1]
    expected = model(images, noise_for([0, 1]))
    found = model(images, Shuffled(noise_for([0, 1]), order))
    for name in ("components", "log_masks", "attention_log_masks"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name)[:, order], rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(found.latents["nll"], expected.latents["nll"], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_result_depends_on_neither_batch_nor_order() -> None:
    """Though the refinement sees a gradient of a whole batch's loss."""
    model, images = small_model(final_refinements=2), batch_of(4)
    whole = model(images, noise_for([10, 11, 12, 13]))
    part = model(images[1:3].flip(0), noise_for([12, 11]))
    single = model(images[3:], noise_for([13]))
    for found, expected in ((part, whole[1:3].map(lambda x: x.flip(0))), (single, whole[3:])):
        for x, y in zip(tensors_of(found), tensors_of(expected), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-3)


def test_training_in_halves_is_training_as_a_whole() -> None:
    model, images = small_model().train(), batch_of(4)
    gradients = []
    for parts in ([[0, 1, 2, 3]], [[0, 1], [2, 3]]):
        model.zero_grad()
        for part in parts:
            scene = model(images[part], noise_for(part))
            (loss_of(model, scene, images[part]) / len(parts)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5 * largest)


@torch.no_grad()
def test_refinement_batch_size_matters_where_gradients_are_small() -> None:
    """Against the ε of the layer normalisation. That it is the published batch, the reference values say."""
    images, found = batch_of(2), {}
    for size in (1, 2, 2000):
        model = small_model(refinement_batch_size=size)
        found[size] = model(images, noise_for([0, 1])).latents["mean"]
    assert not torch.allclose(found[1], found[2000], rtol=1e-3, atol=1e-3)
    assert (found[1] - found[2]).abs().max() < (found[1] - found[2000]).abs().max()


@torch.no_grad()
def test_number_of_slots_and_refinements_may_change() -> None:
    model, images = small_model(final_refinements=2), batch_of(2)
    for num_slots in (1, 2, 6):
        assert model(images, num_slots=num_slots).num_slots == num_slots
    whole = model(images, noise_for([0, 1]), num_refinements=3)
    for count in (0, 1, 2):
        part = model(images, noise_for([0, 1]), num_refinements=count)
        torch.testing.assert_close(part.components, whole.auxiliary[f"step_{count}"].components)
    default = model(images, noise_for([0, 1]))
    torch.testing.assert_close(default.components, whole.auxiliary["step_2"].components)


def test_global_generator_is_used_without_noise_and_left_alone_with_it() -> None:
    model, images = small_model(), batch_of(2)
    state = torch.get_rng_state()
    model(images, noise_for([0, 1]))
    assert torch.equal(torch.get_rng_state(), state)
    first = model(images).reconstruction
    torch.set_rng_state(state)
    assert torch.equal(model(images).reconstruction, first)
    assert not torch.equal(model(images).reconstruction, first)


# ---------------------------------------------------------------- gradients inside the evaluation


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_evaluation_follows_the_gradient_and_keeps_none(surroundings: Any, training: bool) -> None:
    model = small_model(final_refinements=2).train(training)
    with surroundings():
        images = batch_of(2).clone()  # in inference mode, one that autograd would refuse
        scene = model(images, noise_for([0, 1]), num_refinements=2)
        assert not torch.is_grad_enabled()
    for tensor in tensors_of(scene):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
    assert all(p.grad is None for p in model.parameters())
    with_graph = model(batch_of(2), noise_for([0, 1]), num_refinements=2)
    assert with_graph.components.requires_grad
    for x, y in zip(tensors_of(scene), tensors_of(with_graph), strict=True):
        torch.testing.assert_close(x, y.detach(), rtol=1e-4, atol=1e-4)


def test_evaluation_frees_its_graph() -> None:
    model, maps = small_model(final_refinements=3), list[Any]()
    model.network.decoder.layers[2].register_forward_hook(lambda _, __, out: maps.append(weakref.ref(out)))
    scenes = []
    for keep in (False, True):
        maps.clear()
        with torch.set_grad_enabled(keep):
            scenes.append(model(batch_of(2), noise_for([0, 1])))
        gc.collect()
        assert len(maps) == 4
        assert sum(reference() is not None for reference in maps) == (4 if keep else 0)
    assert len(scenes) == 2


def test_evaluation_follows_the_weights_of_the_last_training_step(tmp_path: Path) -> None:
    """They are part of the model, also where the objective's state is left out."""
    model, images = small_model(objective=SoftplusGECO(warmup_steps=0, beta=2.0)), batch_of(2)
    before = model(images, noise_for([0, 1])).latents["mean"]
    model.train()(images)
    assert model.network.step_weights.tolist() == pytest.approx([2.126928, 1.0])
    model.objective.beta.fill_(0.1)
    model.eval()
    after = model(images, noise_for([0, 1])).latents["mean"]
    assert model.network.step_weights.tolist() == pytest.approx([2.126928, 1.0])
    assert not torch.equal(before, after)
    assert "network.step_weights" in model.state_dict()


# ---------------------------------------------------------------- curriculum


class Images(Dataset[dict[str, Tensor]]):
    """Random pictures."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8, generator=generator)
        return {"image": image, "index": torch.tensor(index)}


class Refinements(pl.Callback):
    """How many refinements every batch took."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self.seen.append(pl_module.current_refinements)


CURRICULUM: dict[str, Any] = {"curriculum_steps": 3, "warmup_steps": 2, "learning_rate": 0.01}


def trainer_for(max_steps: int, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **options,
    )


def loader() -> DataLoader[dict[str, Tensor]]:
    """All batches alike: Lightning begins a plain loader again from its first one."""
    few = [Images()[index] for index in range(2)]
    return DataLoader(20 * few, batch_size=2, generator=torch.Generator())  # type: ignore[arg-type]


def test_curriculum_goes_by_the_optimiser_step() -> None:
    seen = Refinements()
    trainer_for(6, callbacks=[seen]).fit(small_model(**CURRICULUM), loader())
    assert seen.seen == [3, 3, 3, 1, 1, 1]
    seen = Refinements()
    model = small_model(**CURRICULUM)
    trainer_for(5, callbacks=[seen], accumulate_grad_batches=2).fit(model, loader())
    assert seen.seen == [3] * 6 + [1] * 4
    assert model.eval().current_refinements == 1
    assert small_model(**CURRICULUM).train().current_refinements == 3


@pytest.mark.parametrize("half", few([2, 4], 4))
def test_resumed_run_is_the_uninterrupted_one(half: int, tmp_path: Path) -> None:
    """Before and after the change of the curriculum; noise included."""
    objective = {"objective": SoftplusGECO(goal=-2.0, warmup_steps=2, step_size=1e-4)}
    whole, seen = small_model(**CURRICULUM, **objective), Refinements()
    torch.manual_seed(3)
    trainer_for(7, callbacks=[seen]).fit(whole, loader())
    first = small_model(**CURRICULUM, **objective)
    trainer = trainer_for(half)
    torch.manual_seed(3)
    trainer.fit(first, loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, rest = small_model(**CURRICULUM, **objective), Refinements()
    trainer_for(7, callbacks=[rest]).fit(second, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.seen == seen.seen[half:]
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


# ---------------------------------------------------------------- compilation, counts


def test_compiled_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = nn.Module.compile
    modes: list[Any] = []

    def compile_quickly(module: nn.Module, mode: str) -> None:
        modes.append(mode)
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    torch._dynamo.reset()
    results = []
    for mode in (None, "default"):
        model, images = small_model(num_refinements=2, compile=mode).train(), batch_of(2)
        for _ in range(2):  # Lightning may call it twice
            model.configure_model()
        scene = model(images, noise_for([0, 1]))
        loss = loss_of(model, scene, images)
        loss.backward()
        gradient = model.network.encoder[0].weight.grad
        with torch.inference_mode():
            evaluated = model.eval()(images, noise_for([0, 1])).latents["nll"]
        results.append((loss, gradient, evaluated))
    assert modes == ["default"] * 2
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_graphs_cannot_replay_a_gradient_inside(mode: str) -> None:
    line = rf"compile='{mode}': EfficientMORL takes gradients inside its forward, .*; use 'default'$"
    with pytest.raises(ConfigurationError, match=line):
        small_model(compile=mode)
    with pytest.raises(ConfigurationError, match=line):
        SRI(3, 32, encoder="emorl", compile=mode)
    assert small_model(compile="max-autotune-no-cudagraphs").compile_mode


def count_step(model: EfficientMORL, batch_size: int = 2) -> Counts:
    images = torch.rand(batch_size, 3, model.image_size, model.image_size)
    model.train()
    with count_operations() as counts:
        loss_of(model, model(images), images).backward()
        model.objective.update()
    return counts


@pytest.mark.parametrize("options", [{}, {"prior": "bottom_up"}, {"likelihood": "gaussian"}])
def test_nothing_waits_for_the_device(options: dict[str, Any]) -> None:
    counts = count_step(small_model(**options))
    assert counts.kernels
    assert not counts.syncs
    assert not counts.host_reads


def test_kernels_depend_on_layers_and_refinements_alone() -> None:
    few = count_step(small_model(num_slots=2)).kernels.total()
    assert count_step(small_model(num_slots=9), batch_size=5).kernels.total() == few
    less = count_step(small_model(num_slots=2, num_refinements=2)).kernels.total()
    assert 0 < few - less <= 300


def test_floating_point_operations_of_a_training_step() -> None:
    """Decoding I + 1 times forward, I times to the slots alone, I + 1 times to the weights too."""

    def convolution(side: int, kernel: int, channels: int) -> int:
        return 2 * side**2 * kernel**2 * channels

    slots, count = 5, 2
    sides = (28, 26, 24, 22, 20)  # without padding; the first layer is convolved once for all slots
    decoder = sum(convolution(side, 3, 64 * 64) for side in sides[1:4]) + convolution(20, 3, 64 * 4)
    encoder = 3 * convolution(20, 5, 64 * 64)
    model = EfficientMORL(slots, 20, num_refinements=count)
    counts = count_step(model, batch_size=4)
    expected = 4 * (slots * decoder * ((count + 1) * 3 + count) + 3 * encoder)
    assert 1.0 < counts.flops / expected < 1.1


# ---------------------------------------------------------------- training


DATA: dict[str, Any] = {"image_size": 32, "num_slots": 3, "train_size": 12, "val_size": 4, "test_size": 4}


def test_every_command_with_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning evaluates in inference mode; the pictures are drawn without gradients."""
    options = {**SMALL, "curriculum_steps": 2, "decoder": "big", "decoder_stages": 3}
    config = {
        "model": {"class_path": "lightning_genesis.models.EfficientMORL", "init_args": options},
        "data": {"class_path": "data_modules.MultiDSprites", "init_args": {**DATA, "batch_size": 4}},
        "trainer": {"max_steps": 3, "val_check_interval": 3, "log_every_n_steps": 1, "accelerator": "cpu"},
        "pictures": {"num_images": 2, "every": 1},
        "run": {"wandb": False, "name": "run"},
    }
    config["trainer"] |= {"enable_progress_bar": False, "gradient_clip_val": 5.0}  # type: ignore[operator]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emorl.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "emorl.yaml"]) == 0
    run = tmp_path / "runs/run"
    pictures = {path.stem for path in (run / "pictures").iterdir()}
    assert pictures >= {"initial_masks", "reconstructions-000003", "samples-000003"}
    for command in ("validate", "test", "predict"):
        args = [command, "--config", "emorl.yaml", "--ckpt_path", "last"]
        assert main(args) == 0, command
    (header, values) = ((run / "test.csv").read_text().splitlines()[i].split(",") for i in (0, 1))
    scores = dict(zip(header, values, strict=True))
    assert {"test/elbo", "test/nll", "test/kl", "test/ari_fg", "test/ari_fg_attention"} <= scores.keys()
    assert (run / "pictures/test_reconstructions.png").is_file()
    assert sum(path.is_dir() for path in (run / "predictions").iterdir()) == 4
    assert main(["export", "runs/run", "emorl.safetensors"]) == 0
    exported, last = read_checkpoint("emorl.safetensors"), read_checkpoint(run / "checkpoints/last.ckpt")
    name = "network.step_weights"
    assert torch.equal(exported["state_dict"][name], last["state_dict"][name])
    assert isinstance(SceneModel.load_from_checkpoint("emorl.safetensors"), EfficientMORL)


@pytest.mark.slow  # Slot Attention learns meanwhile
def test_it_learns() -> None:
    """Four images of one colour each, by heart."""
    torch.manual_seed(0)
    options = {**SMALL, "latent_dim": 16, "std": 0.1, "warmup_steps": 0, "num_refinements": 1}
    model = small_model(2, 8, **{**options, "objective": FixedBeta()}).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, 8)
    errors, losses = [], []
    for _ in range(200):
        scene = model(images)
        loss = loss_of(model, scene, images)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
        errors.append((scene.reconstruction - images).square().mean().item())
    grey = images.var(dim=0, correction=0).mean()  # error of the best single image
    assert sum(errors[-10:]) / 10 < 0.2 * grey
    assert sum(losses[-10:]) < sum(losses[:10])
