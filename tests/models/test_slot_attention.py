"""How Slot Attention behaves: what it accepts, what depends on what, and what its numbers mean."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.counting import Counts, count_operations
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.metrics import mean_squared_error
from lightning_genesis.models import SlotAttention
from lightning_genesis.models.slot_attention import ENCODER_STRIDES
from lightning_genesis.objectives import GECO, FixedBeta
from lightning_genesis.scene import IndexedNoise, Scene

SMALL: dict[str, Any] = {"slot_dim": 8, "feature_dim": 8, "mlp_dim": 8, "decoder_dim": 8}


def small_model(num_slots: int = 3, image_size: int = 32, **options: Any) -> SlotAttention:
    torch.manual_seed(0)
    return SlotAttention(num_slots, image_size, **{**SMALL, **options}).eval()


def batch_of(size: int, image_size: int = 32) -> Tensor:
    return torch.rand(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def noise_for(index: list[int]) -> IndexedNoise:
    return IndexedNoise(7, index)


def loss_of(model: SlotAttention, scene: Scene, images: Tensor) -> Tensor:
    return model.objective(model.loss_terms(scene, images), num_dimensions=images[0].numel())


def weight_of(layer: Any) -> Tensor:
    return layer.weight


# ---------------------------------------------------------------- output


@pytest.mark.parametrize(
    ("image_size", "options"),
    [
        (32, {}),
        (64, {}),
        (96, {}),
        (128, {}),
        (32, {"decoder_stages": 2}),
        (32, {"decoder_stages": 0}),
        (64, {"encoder_stages": 2, "decoder_stages": 3}),
        (35, {"decoder": "small", "encoder_stages": 3}),
        (64, {"decoder": "small", "implementation": "emorl"}),
        (96, {"implementation": "emorl", "encoder_stages": 1}),
    ],
)
def test_image_sizes(image_size: int, options: dict[str, Any]) -> None:
    model = small_model(image_size=image_size, **options).train()
    images = batch_of(2, image_size)
    scene = model(images)
    assert scene.components.shape == (2, 3, 3, image_size, image_size)
    assert scene.log_masks.shape == (2, 3, 1, image_size, image_size)
    assert scene.reconstruction.shape == images.shape
    assert scene.latents["slots"].shape == (2, 3, 8)
    assert scene.attention_log_masks is not None
    for log_masks in (scene.log_masks, scene.attention_log_masks):
        torch.testing.assert_close(log_masks.exp().sum(dim=1), torch.ones(2, 1, image_size, image_size))
    loss_of(model, scene, images).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"num_slots": 0},
        {"image_size": 40},
        {"image_size": 16},
        {"image_size": 0},
        {"slot_dim": 0},
        {"feature_dim": 0},
        {"mlp_dim": -1},
        {"num_iterations": 0},
        {"num_iterations": 2.5},
        {"encoder_stages": 4},
        {"encoder_stages": -1},
        {"decoder": "large"},
        {"decoder_dim": 0},
        {"decoder_stages": 5},
        {"decoder_stages": -1},
        {"implementation": "keras"},
        {"warmup_steps": -1},
        {"decay_rate": 0.0},
        {"decay_rate": float("nan")},
        {"decay_steps": -1},
        {"optimizer": "Adamm"},
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigurationError, match=f"{name}={value!r}.* use ") as raised:
        SlotAttention(**{"num_slots": 3, "image_size": 32, **SMALL, **options})
    assert "\n" not in str(raised.value)


def test_defaults_are_the_published_model() -> None:
    model = SlotAttention(7, 128)
    network = model.network
    assert network.decoder.side == 8
    assert network.feature_side == 128
    assert model.num_iterations == 3
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    assert isinstance(model.objective, FixedBeta)
    configured: Any = model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["eps"], optimizer.defaults["betas"]) == (1e-8, (0.9, 0.999))
    assert scheduler["scheduler"].base_lrs == [4e-4]
    assert scheduler["interval"] == "step"


def test_initial_values_are_kerass() -> None:
    """Glorot uniform, orthogonal recurrent weights, zero biases, and the limit √(6/65) of the slots."""
    network = SlotAttention(7, 128).network
    assert 0.95 * (6 / 65) ** 0.5 < network.initial_slots.abs().max() <= (6 / 65) ** 0.5
    gru = network.attention.gru
    torch.testing.assert_close(gru.weight_hh.t() @ gru.weight_hh, torch.eye(64), rtol=0, atol=1e-5)
    limits = {
        weight_of(network.encoder[2]): (6 / (25 * 128)) ** 0.5,
        weight_of(network.encoder[0]): (6 / (25 * 67)) ** 0.5,
        weight_of(network.decoder.layers[10]): (6 / (9 * 68)) ** 0.5,
        weight_of(network.attention.mlp[0]): (6 / 192) ** 0.5,
        network.position.projection.weight: (6 / 68) ** 0.5,
        gru.weight_ih: (6 / 256) ** 0.5,
    }
    for weight, limit in limits.items():
        assert 0.97 * limit < weight.abs().max() <= limit
    for name, value in network.named_parameters():
        if "bias" in name:
            assert not value.any(), name


def test_initial_values_are_those_of_emorls_repository() -> None:
    network = SlotAttention(7, 96, implementation="emorl").network
    images, count = batch_of(1, 96), 4000
    slots = network.start(None, images, count)
    assert slots.std().item() == pytest.approx(1.14598, rel=0.01)
    assert abs(slots.mean().item()) < 0.02
    convolution = weight_of(network.decoder.layers[2])  # Glorot normal with gain 0.02
    assert convolution.std().item() == pytest.approx(0.02 * (2 / (25 * 128)) ** 0.5, rel=0.02)
    assert not any(p.any() for n, p in network.decoder.named_parameters() if n.endswith("bias"))
    assert {m.eps for m in network.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert isinstance(network.attention.norm_inputs, nn.Identity)


def test_one_slot() -> None:
    model = small_model(num_slots=1).train()
    images = batch_of(2)
    scene = model(images)
    assert torch.equal(scene.log_masks, torch.zeros(2, 1, 1, 32, 32))
    assert torch.equal(scene.attention_log_masks, torch.zeros(2, 1, 1, 32, 32))
    assert torch.equal(scene.reconstruction, scene.components[:, 0])
    loss_of(model, scene, images).backward()


# ---------------------------------------------------------------- contracts


@pytest.mark.parametrize("implementation", ["official", "emorl"])
@torch.no_grad()
def test_loss_is_the_squared_error_in_its_own_units(implementation: Any) -> None:
    model, images = small_model(implementation=implementation), batch_of(3)
    scene = model(images)
    terms = model.loss_terms(scene, images)
    assert list(terms) == ["slot_attention"] == list(model.branches)
    assert terms["slot_attention"].kl == {}
    mse = mean_squared_error(scene.reconstruction, images).float()
    in_own_range = ((2 * scene.reconstruction - 1) - (2 * images - 1)).square().mean(dim=(1, 2, 3))
    expected = in_own_range if implementation == "official" else mse * 3 * 32 * 32
    torch.testing.assert_close(terms["slot_attention"].nll, expected)
    torch.testing.assert_close(loss_of(model, scene, images), expected.mean())
    assert model.elbo(scene, images) is None


def test_there_is_nothing_to_sample_from() -> None:
    with pytest.raises(ConfigurationError, match="SlotAttention has no prior over scenes"):
        small_model().sample(2)


@torch.no_grad()
def test_components_are_in_the_range_of_the_images() -> None:
    """The official decoder is linear around grey; EMORL's has a sigmoid."""
    slots = 30.0 * torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    model = small_model()
    raw = model.network.decoder(slots.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(model.decode(slots).components, (raw[:, :, :3] + 1.0) / 2.0)
    for value in model.network.decoder.parameters():
        value.zero_()
    assert (model.decode(slots).components == 0.5).all()
    assert small_model(implementation="emorl").decode(1e6 * slots).components.max() <= 1.0


@torch.no_grad()
def test_images_are_seen_in_minus_one_to_one() -> None:
    model, seen = small_model(), []
    model.network.encoder.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    images = batch_of(2)
    images[0], images[1] = 0.0, 1.0
    model(images)
    assert (seen[0][0] == -1.0).all()
    assert (seen[0][1] == 1.0).all()


@torch.no_grad()
def test_pieces_make_the_whole() -> None:
    model, images = small_model(), batch_of(2)
    scene = model(images, noise_for([0, 1]))
    slots = model.encode(images, noise_for([0, 1]))["slots"]
    assert torch.equal(slots, scene.latents["slots"])
    torch.testing.assert_close(model.decode(slots).reconstruction, scene.reconstruction)


def test_objective_of_the_users_choice_and_plain_hyperparameters() -> None:
    assert isinstance(small_model(objective=GECO()).objective, GECO)
    again = SlotAttention(**small_model(objective=FixedBeta(beta=0.5)).hparams)
    assert again.objective.arguments["beta"] == 0.5  # type: ignore[union-attr]
    assert SlotAttention(**small_model().hparams).objective.plain() == FixedBeta().plain()


# ---------------------------------------------------------------- slots, iterations, noise


@torch.no_grad()
def test_number_of_slots_and_iterations_may_change() -> None:
    model, images = small_model(), batch_of(2)
    for num_slots in (1, 2, 6):
        assert model(images, num_slots=num_slots).num_slots == num_slots
    results = [model(images, noise_for([0, 1]), num_iterations=t).reconstruction for t in (1, 2, 3, 8)]
    assert all(not torch.allclose(a, b) for a, b in pairwise(results))
    torch.testing.assert_close(results[2], model(images, noise_for([0, 1])).reconstruction)
    other = small_model(num_slots=5, num_iterations=1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images, noise_for([0, 1]), num_slots=3).reconstruction, results[0])


class Shuffled:
    """The noise of another source with its slots in another order."""

    def __init__(self, noise: IndexedNoise, order: list[int]) -> None:
        self.noise, self.order = noise, order

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return self.noise.normal(shape, like)[:, self.order]

    uniform = normal


@pytest.mark.parametrize("options", [{}, {"encoder_stages": 1, "implementation": "emorl"}])
@torch.no_grad()
def test_order_of_slots_is_that_of_the_noise(options: dict[str, Any]) -> None:
    model, images, order = small_model(num_slots=4, **options), batch_of(2), [2, 3, 0, 1]
    expected = model(images, noise_for([0, 1]))
    found = model(images, Shuffled(noise_for([0, 1]), order))
    for name in ("components", "log_masks", "attention_log_masks"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name)[:, order], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_result_depends_on_neither_batch_nor_order() -> None:
    model, images = small_model(), batch_of(4)
    whole = model(images, noise_for([10, 11, 12, 13]))
    part = model(images[1:3].flip(0), noise_for([12, 11]))
    for name in ("components", "log_masks", "attention_log_masks"):
        expected = getattr(whole, name)[1:3].flip(0)
        torch.testing.assert_close(getattr(part, name), expected, rtol=1e-4, atol=1e-5)


def test_global_generator_is_used_without_noise_and_left_alone_with_it() -> None:
    model, images = small_model(), batch_of(2)
    state = torch.get_rng_state()
    model(images, noise_for([0, 1]))
    assert torch.equal(torch.get_rng_state(), state)
    first = model(images).reconstruction
    torch.set_rng_state(state)
    assert torch.equal(model(images).reconstruction, first)
    assert not torch.equal(model(images).reconstruction, first)


@pytest.mark.parametrize("encoder_stages", [1, 2, 3])
@torch.no_grad()
def test_small_attention_maps_are_enlarged_in_place(encoder_stages: int) -> None:
    """With position as the only feature a coarse map, enlarged, is the fine one up to interpolation."""
    fine, coarse = small_model(num_slots=2), small_model(num_slots=2, encoder_stages=encoder_stages)
    assert coarse.network.feature_side == 32 // 2**encoder_stages
    assert math.prod(ENCODER_STRIDES[encoder_stages]) == 2**encoder_stages
    for value in fine.network.encoder.parameters():
        value.zero_()
    coarse.load_state_dict(fine.state_dict())
    masks = [model(batch_of(1), noise_for([0])).attention_log_masks.exp()[0] for model in (fine, coarse)]
    error = (masks[0] - masks[1]).abs()
    assert error.mean() < 0.02 * 2 ** (encoder_stages - 1)
    for wrong in (masks[0].flip(2), masks[0].flip(3), masks[0].transpose(2, 3)):
        assert (wrong - masks[1]).abs().mean() > 2 * error.mean()


# ---------------------------------------------------------------- precision, compilation, counts


@pytest.mark.parametrize("implementation", ["official", "emorl"])
def test_bfloat16_leaves_the_terms_in_float32(implementation: Any) -> None:
    model, images = small_model(implementation=implementation).train(), batch_of(2)
    expected = model.loss_terms(model(images, noise_for([0, 1])), images)["slot_attention"].nll
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scene = model(images, noise_for([0, 1]))
        found = model.loss_terms(scene, images)["slot_attention"].nll
        loss = loss_of(model, scene, images)
    assert scene.attention_log_masks is not None
    for value in (scene.log_masks, scene.attention_log_masks, scene.components, found, loss):
        assert value.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0.0)
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("eager", {"implementation": "emorl"}),
        # the VAE has the backward in the graph meanwhile
        pytest.param("aot_eager", {"encoder_stages": 1}, marks=pytest.mark.slow),
    ],
)
def test_encoder_to_decoder_is_one_graph(backend: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model, images = small_model(decoder_stages=2, **options).train(), batch_of(2)
    compiled = torch.compile(model.network.forward, backend=backend, fullgraph=True)
    results = []
    for run in (model.network.forward, compiled):
        model.zero_grad()
        torch.manual_seed(5)
        components, log_masks, inference = run(images, None, 3, 2)
        (components.sum() + log_masks[:, 0].sum() + inference.slots.square().sum()).backward()
        gradient = model.network.encoder[0].weight.grad
        results.append((components, log_masks, inference.log_masks, gradient))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def count_step(model: SlotAttention, batch_size: int = 2) -> Counts:
    images = torch.rand(batch_size, 3, model.image_size, model.image_size)
    model.train()
    with count_operations() as counts:
        loss_of(model, model(images), images).backward()
        model.objective.update()
    return counts


@pytest.mark.parametrize(
    "options", [{}, {"implementation": "emorl"}, {"encoder_stages": 2}, {"decoder": "small"}]
)
def test_nothing_waits_for_the_device(options: dict[str, Any]) -> None:
    counts = count_step(small_model(**options))
    assert 100 < counts.kernels.total() <= 550  # 380 to 428 with torch 2.15, 404 to 452 with 2.11
    assert not counts.syncs
    assert not counts.host_reads


def test_kernels_depend_on_iterations_alone() -> None:
    few = count_step(small_model(num_slots=2)).kernels.total()
    assert count_step(small_model(num_slots=9), batch_size=5).kernels.total() == few
    more = count_step(small_model(num_slots=2, num_iterations=4)).kernels.total()
    assert 0 < more - few <= 100  # a GRU is a dozen kernels on a CPU, one on a GPU


def test_floating_point_operations_of_the_published_model() -> None:
    """The encoder's convolutions once per image, the decoder's once per slot."""

    def convolution(side: int, kernel: int, channels: int) -> int:
        return 2 * side**2 * kernel**2 * channels

    encoder = convolution(128, 5, 3 * 64) + 3 * convolution(128, 5, 64 * 64)
    # A transposed convolution works on its input's pixels.
    decoder = sum(convolution(side, 5, 64 * 64) for side in (8, 16, 32, 64, 128))
    decoder += convolution(128, 3, 64 * 4)
    with torch.no_grad(), count_operations() as counts:
        SlotAttention(7, 128)(torch.rand(1, 3, 128, 128))
    assert 1.0 < counts.flops / (encoder + 7 * decoder) < 1.02


# ---------------------------------------------------------------- training


class Images(Dataset[dict[str, Tensor]]):
    """Random pictures."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)
        segmentation = torch.randint(0, 3, (32, 32), dtype=torch.uint8, generator=generator)
        return {"image": image, "index": torch.tensor(index), "segmentation": segmentation}


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


class Rates(pl.Callback):
    """The learning rate that every optimiser step is made with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


SCHEDULE: dict[str, Any] = {"warmup_steps": 4, "decay_steps": 10, "learning_rate": 0.1}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_schedule_moves_once_per_optimiser_step(accumulate: int) -> None:
    rates, model = Rates(), small_model(**SCHEDULE)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer_for(1, callbacks=[Rates()]).fit(model, DataLoader(Images(), batch_size=2))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    model = small_model(**SCHEDULE)
    trainer = trainer_for(6, callbacks=[rates], accumulate_grad_batches=accumulate)
    trainer.fit(model, DataLoader(Images(), batch_size=2))
    expected = [0.1 * min(1.0, t / 4) * 0.5 ** (t / 10) for t in range(6)]
    assert rates.seen == pytest.approx(expected)
    assert model.objective.step == 6


def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Weights, moments and learning rate, through a checkpoint that loads without running code."""

    def loader() -> DataLoader[dict[str, Tensor]]:
        """All batches alike: Lightning begins a plain loader again from its first one."""
        few = [Images()[index] for index in range(4)]
        return DataLoader(10 * few, batch_size=4, generator=torch.Generator())  # type: ignore[arg-type]

    whole = small_model(**SCHEDULE)
    rates = Rates()
    trainer_for(8, callbacks=[rates]).fit(whole, loader())
    first = small_model(**SCHEDULE)
    trainer = trainer_for(4)
    trainer.fit(first, loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    contents = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert contents["lr_schedulers"][0]["last_epoch"] == 4
    second, rest = small_model(**SCHEDULE), Rates()
    trainer_for(8, callbacks=[rest]).fit(second, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.seen == rates.seen[4:]
    for (name, expected), (_, found) in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_validation_scores_both_kinds_of_masks_and_no_bound() -> None:
    model = small_model()
    trainer = trainer_for(1)
    (scores,) = trainer.validate(model, DataLoader(Images(), batch_size=5), verbose=False)
    assert {"val/mse", "val/ari_fg", "val/ari_fg_attention"} <= set(scores)
    assert not {"val/elbo", "val/nll", "val/kl", "val/bits_per_dim"} & set(scores)
    (again,) = trainer.validate(model, DataLoader(Images(), batch_size=8), verbose=False)
    assert again == pytest.approx(scores, rel=1e-4, abs=1e-6)


def test_it_learns() -> None:
    """Four images of one colour each, by heart."""
    model = small_model(2, 8, decoder_stages=1, slot_dim=16, feature_dim=16, warmup_steps=0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, 8)
    errors = []
    for _ in range(150):
        loss = loss_of(model, model(images), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    grey = 4.0 * images.var(dim=0, correction=0).mean()  # error of the best single image
    assert errors[0] > grey
    assert sum(errors[-10:]) / 10 < 0.2 * grey


# ---------------------------------------------------------------- learned queries, implicit gradients


def test_learned_queries_need_no_noise_and_tell_the_slots_apart() -> None:
    model, images = small_model(learned_queries=True), batch_of(3)
    with torch.no_grad():
        scene = model(images, noise_for([0, 1, 2]))
        again = model(images, noise_for([5, 6, 7]))
    torch.testing.assert_close(scene.latents["slots"], again.latents["slots"])
    assert (scene.latents["slots"][:, 0] - scene.latents["slots"][:, 1]).abs().max() > 1e-3
    with pytest.raises(ConfigurationError, match="num_slots=4, but there are 3 learned queries"):
        model(images, num_slots=4)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("queries", [False, True])
def test_every_weight_that_is_trained_has_a_gradient(implicit: bool, queries: bool) -> None:
    """DDP waits for ever for one that has none; the Gaussian of the start has none by implicit ones."""
    model, images = small_model(learned_queries=queries, implicit_gradient=implicit).train(), batch_of(2)
    loss_of(model, model(images), images).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert ("network.initial_slots" in trained) is (queries or not implicit)
