"""How SRI behaves: which loss trains what, what depends on what, its variants, and what it costs."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.counting import Counts, count_operations
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.layers.matching import reorder
from lightning_genesis.models import SRI
from lightning_genesis.objectives import GECO
from lightning_genesis.scene import IndexedNoise
from tests.models.sri_fixture import SMALL
from tests.models.test_sri_reference import parts_of
from tests.tiny_checkpoint import RandomImages

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "SRI-G": {"likelihood": "gaussian", "normalized_likelihood": False},
    "one decoder": {"shared_decoder": True},
    "without scene variable": {"scene_dim": None},
    "without alignment": {"order": "none", "cross_order_kl": False, "autoregressive_posterior": False},
    "without cross-order KL": {"cross_order_kl": False},
    "hungarian": {"order": "hungarian"},
    "without L_seg": {"segregation_loss": False, "shared_decoder": True},
    "SRI-SA*": {
        "encoder": "slot_attention",
        "order": "none",
        "cross_order_kl": False,
        "segregation_loss": False,
        "shared_decoder": True,
    },
}
STATISTICS = ("mean", "scale", "sample")


def small_model(num_slots: int = 4, image_size: int = 32, **options: Any) -> SRI:
    """A narrow model whose parts all matter, in evaluation mode."""
    torch.manual_seed(0)
    model = SRI(num_slots, image_size, **{**SMALL, **options})
    for part in (model.scene_encoder, model.slot_prior, model.slot_posterior):
        for name, parameter in part.named_parameters() if part is not None else ():
            if name.endswith("weight") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.4)
    return model.eval()


def batch_of(size: int, image_size: int = 32) -> Tensor:
    return torch.rand(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def noise_for(index: list[int]) -> IndexedNoise:
    return IndexedNoise(7, index)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    __tracebackhide__ = True
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- which loss trains what

NAMES = ("encoder", "scene encoder", "prior", "posterior", "decoder")
REACHED = {  # specification §2.8
    ("segregation", "nll"): {"encoder"},
    ("segregation", "latent"): {"encoder"},
    ("sri", "nll"): {"scene encoder", "posterior", "decoder"},
    ("sri", "scene"): {"scene encoder"},
    ("sri", "slot"): {"scene encoder", "prior", "posterior"},
    ("sri", "cross_order"): {"scene encoder", "prior", "posterior"},
}


@pytest.fixture(scope="module")
def training() -> tuple[SRI, dict[tuple[str, str], Tensor]]:
    """A model and all its terms, by branch and name."""
    model, images = small_model().train(), batch_of(2)
    terms = model.loss_terms(model(images, noise_for([0, 1])), images)
    values = {(branch, "nll"): term.nll for branch, term in terms.items()}
    values |= {(branch, name): kl for branch, term in terms.items() for name, kl in term.kl.items()}
    return model, values


@pytest.mark.parametrize("term", REACHED, ids="-".join)
def test_which_term_reaches_which_parameters(
    training: tuple[SRI, dict[tuple[str, str], Tensor]], term: tuple[str, str]
) -> None:
    model, values = training
    model.zero_grad()
    values[term].sum().backward(retain_graph=True)
    reached = {
        name
        for name, part in zip(NAMES, parts_of(model), strict=True)
        if any(p.grad is not None and p.grad.any() for p in part.parameters())
    }
    assert reached == REACHED[term]


def test_no_term_is_left_out(training: tuple[SRI, dict[tuple[str, str], Tensor]]) -> None:
    assert set(training[1]) == set(REACHED)


def test_shared_decoder_is_all_that_both_losses_train() -> None:
    model, images = small_model(shared_decoder=True).train(), batch_of(2)
    terms = model.loss_terms(model(images), images)["sri"]
    (terms.nll + terms.total_kl).sum().backward()
    encoder: Any = model.segregation
    trained = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert trained
    assert all(name.startswith("network.decoder.") for name in trained)


def test_without_its_own_loss_the_encoder_learns_by_the_other() -> None:
    model, images = small_model(**VARIANTS["SRI-SA*"]).train(), batch_of(2)
    assert model.branches == ("sri",)
    terms = model.loss_terms(model(images), images)["sri"]
    terms.nll.sum().backward()
    encoder: Any = model.segregation
    assert encoder.network.initial_slots.grad.any()


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("order", ["greedy", "hungarian"])
@torch.no_grad()
def test_order_of_the_encoder_does_not_matter(order: str) -> None:
    model, images = small_model(num_slots=6, order=order), batch_of(5)
    given = model.segregation.encode(images, noise_for([0, 1, 2, 3, 4]))
    shuffled = torch.rand(5, 6, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    permuted = {name: reorder(given[name], shuffled) for name in STATISTICS}
    expected = model._infer(given, noise_for([5, 6, 7, 8, 9]))
    found = model._infer(permuted, noise_for([5, 6, 7, 8, 9]))
    found["order"] = shuffled.gather(1, found["order"])
    assert_same(found, expected)
    scenes = [replace(model.decode(latents["sample"]), latents=latents) for latents in (expected, found)]
    losses = [{**model._kl(scene), "cross": model._cross_order_kl(scene)} for scene in scenes]
    assert_same(losses[1], losses[0])
    torch.testing.assert_close(*(model._nll(scene, images, True) for scene in scenes))


@torch.no_grad()
def test_slots_are_the_encoders_in_another_order() -> None:
    model, images = small_model(num_slots=6), batch_of(3)
    scene = model(images, noise_for([0, 1, 2]))
    order, before = scene.latents["order"], scene.auxiliary["segregation"]
    assert order.sort(dim=1).values.tolist() == [list(range(6))] * 3
    assert not torch.equal(order, torch.arange(6).expand(3, -1))
    assert torch.equal(scene.latents["mean"], reorder(before.latents["mean"], order))
    assert torch.equal(scene.attention_log_masks, reorder(before.attention_log_masks, order))  # type: ignore[arg-type]


@torch.no_grad()
def test_without_alignment_the_order_is_the_encoders() -> None:
    model, images = small_model(**VARIANTS["without alignment"]), batch_of(2)
    scene = model(images, noise_for([0, 1]))
    assert "order" not in scene.latents
    before = scene.auxiliary["segregation"]
    for name in ("mean", "scale"):
        assert torch.equal(scene.latents[name], before.latents[name])
    assert torch.equal(scene.attention_log_masks, before.attention_log_masks)  # type: ignore[arg-type]


# ---------------------------------------------------------------- variants


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_trains_evaluates_and_samples(variant: str) -> None:
    model, images = small_model(**VARIANTS[variant]).train(), batch_of(2)
    scene = model(images)
    assert "imagination" not in scene.auxiliary  # nothing is decoded that no loss needs
    terms = model.loss_terms(scene, images)
    assert tuple(terms) == model.branches
    model.objective(terms, num_dimensions=images[0].numel()).backward()
    for name, parameter in model.named_parameters():  # DistributedDataParallel waits for every one
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    again = SRI(**model.hparams)
    again.load_state_dict(model.state_dict())
    model.eval()
    with torch.no_grad():
        scene = model(images, noise_for([0, 1]))
        assert scene.auxiliary["imagination"].components.shape == scene.components.shape
        assert model.log_weight(images, noise_for([0, 1])).isfinite().all()
        assert model.score_own(scene, images).keys() == set(model.own_scores)
        assert model.sample(2, 6).components.shape == (2, 6, 3, 32, 32)
        torch.testing.assert_close(scene.masks.sum(dim=1), torch.ones(2, 1, 32, 32))


def test_one_slot() -> None:
    model, images = small_model(num_slots=1).train(), batch_of(2)
    terms = model.loss_terms(model(images), images)
    model.objective(terms, num_dimensions=images[0].numel()).backward()
    assert model.eval()(images).latents["order"].tolist() == [[0], [0]]


def test_encoder_options_are_the_encoders() -> None:
    options = {"latent_dim": 8, "feature_dim": 16, "decoder_stages": 3, "kernel": "laplacian"}
    model = SRI(3, 32, std=0.3, likelihood="gaussian", encoder_options={**options, "analytic_kl": True})
    encoder: Any = model.segregation
    assert {name: encoder.hparams[name] for name in options} == options
    assert (encoder.std, encoder.likelihood, encoder.analytic_kl) == (0.3, "gaussian", True)
    assert encoder.slot_prior is None
    assert model.decoder is not None
    assert model.decoder.grid.shape == encoder.network.decoder.grid.shape == (2, 4, 4)
    assert not any(".objective." in name or "metric" in name for name in model.state_dict())
    own = SRI(3, 32, std=0.3, encoder_options={**options, "std": 0.5}).segregation
    assert own.std == 0.5  # type: ignore[attr-defined]


def test_defaults() -> None:
    model = SRI(9, 64)
    assert model.branches == ("segregation", "sri")
    assert model.scene_dim == 128
    assert model.latent_dim == 64
    assert isinstance(model.objective, GECO)
    assert model.objective.arguments["step_size"] == 1e-6
    assert model.learning_rate_schedule() is None
    schedule = SRI(2, 32, **SMALL, warmup_steps=10_000, decay_steps=100_000).learning_rate_schedule()
    assert schedule is not None
    assert [schedule(step) for step in (0, 5000, 110_000)] == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "monet"}, "encoder='monet' is unknown: use one of genesis_v2"),
        ({"order": "random"}, "order='random' is unknown: use one of greedy, hungarian, none"),
        ({"likelihood": "laplace"}, "likelihood='laplace' is unknown"),
        ({"std": 0.0}, "std=0.0 is no standard deviation"),
        ({"scene_dim": 0}, "scene_dim=0 is too small"),
        ({"hidden_dim": 0}, "hidden_dim=0 is too small"),
        ({"num_set_layers": 0}, "num_set_layers=0 is too small"),
        ({"warmup_steps": -1}, "warmup_steps=-1 is too small"),
        ({"decay_rate": 2.0}, "decay_rate=2.0 is no decay"),
        ({"segregation_loss": False}, "segregation_loss=False .*: use shared_decoder=True with it"),
        ({"encoder_options": {"featur_dim": 8}}, r"featur_dim: .* no such option \(did you mean feature_dim"),
        ({"encoder_options": {"learning_rate": 1.0}}, "learning_rate would be ignored"),
        ({"encoder_options": {"autoregressive_prior": True}}, "autoregressive_prior would be ignored"),
        ({"encoder_options": {"feature_dim": 12}}, "feature_dim=12 does not divide"),
        ({"encoder_options": {"flexible_slots": True}}, "flexible_slots=True: SRI orders a fixed number"),
        ({"encoder": "slot_attention", "encoder_options": {"kernel": "gaussian"}}, "kernel: slot_attention"),
        ({"encoder": "slot_attention", "encoder_options": {"num_iterations": 0}}, "num_iterations=0 is too"),
        ({"encoder": "slot_attention", "encoder_options": {"encoder_stages": 9}}, "encoder_stages=9 is unk"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        SRI(3, 32, **options)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("variant", ["published", "SRI-SA*"])
@torch.no_grad()
def test_result_depends_on_neither_batch_nor_order(variant: str) -> None:
    model, images = small_model(num_slots=6, **VARIANTS[variant]), batch_of(5)
    whole = model(images, noise_for([10, 11, 12, 13, 14]))
    for part, index in ((slice(1, 3), [11, 12]), (slice(4, 5), [14])):
        found = model(images[part], noise_for(index))
        assert_same(found.latents, whole[part].latents)
        reconstructions = ({"own": x, **x.auxiliary} for x in (found, whole[part]))
        assert_same(*({name: x.reconstruction for name, x in scenes.items()} for scenes in reconstructions))


def test_global_generator_is_used_without_noise_and_left_alone_with_it() -> None:
    model, images = small_model(), batch_of(2)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model(images, noise_for([0, 1]))
    model.sample(2, noise=noise_for([0, 1]))
    assert torch.equal(torch.get_rng_state(), state)
    first = model(images).reconstruction
    torch.manual_seed(3)
    assert torch.equal(model(images).reconstruction, first)


@torch.no_grad()
def test_pieces_make_the_whole() -> None:
    model, images = small_model(), batch_of(2)
    scene, latents = model(images, noise_for([0, 1])), model.encode(images, noise_for([0, 1]))
    assert_same(latents, scene.latents)
    torch.testing.assert_close(model.decode(latents["sample"]).reconstruction, scene.reconstruction)
    imagined = model.decode(latents["rollout_sample"]).reconstruction
    torch.testing.assert_close(imagined, scene.auxiliary["imagination"].reconstruction)


# ---------------------------------------------------------------- prior and samples


@pytest.mark.parametrize("scene_dim", [None, 12])
@torch.no_grad()
def test_sample_is_the_prior_slot_by_slot(scene_dim: int | None) -> None:
    model = small_model(scene_dim=scene_dim)
    sample = model.sample(3, 5, 0.5, noise_for([0, 1, 2]))
    scene_latent = sample.latents.get("scene_sample")
    assert (scene_latent is None) == (scene_dim is None)
    noise = noise_for([0, 1, 2])
    if scene_latent is not None:
        torch.testing.assert_close(scene_latent, 0.5 * noise.normal((3, 12), scene_latent))
    latents = sample.latents["sample"]
    mean, scale = model.prior(latents, scene_latent)
    torch.testing.assert_close(latents, mean + 0.5 * scale * noise.normal((3, 5, 8), mean))
    expected = model.decode(latents).reconstruction
    torch.testing.assert_close(sample.reconstruction, expected)


@torch.no_grad()
def test_given_scene_variable_is_taken_as_it_is() -> None:
    model, given = small_model(), torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    cold = model.sample(2, temperature=0.0, scene_latent=given)
    again = model.sample(2, temperature=0.0, scene_latent=given.double())
    assert torch.equal(cold.latents["scene_sample"], given)
    assert torch.equal(cold.reconstruction, again.reconstruction)
    other = model.sample(2, temperature=0.0, scene_latent=-given)
    assert not torch.allclose(cold.reconstruction, other.reconstruction)
    mode = model.sample(2, temperature=0.0)
    assert torch.equal(mode.latents["scene_sample"], torch.zeros(2, 12))
    with pytest.raises(ConfigurationError, match=r"scene_latent has shape \[2, 12\], expected \[3, 12\]"):
        model.sample(3, scene_latent=given)
    with pytest.raises(ConfigurationError, match="the model has no scene variable"):
        small_model(scene_dim=None).sample(2, scene_latent=given)


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("likelihood", ["mixture", "gaussian"])
@torch.no_grad()
def test_bounds(likelihood: str) -> None:
    options: dict[str, Any] = {"likelihood": likelihood, "normalized_likelihood": False}
    model, images = small_model(**options), batch_of(2)
    scene = model(images, noise_for([0, 1]))
    terms = model.loss_terms(scene, images)["sri"]
    constant = images[0].numel() * 0.5 * math.log(2.0 * math.pi)
    elbo = model.elbo(scene, images)
    torch.testing.assert_close(elbo, -(terms.nll + constant + terms.kl["scene"] + terms.kl["slot"]))
    own = model.score_own(scene, images)
    torch.testing.assert_close(own["elbo_sri"], -(terms.nll + constant + terms.total_kl))
    torch.testing.assert_close(own["bits_per_dim_sri"], -own["elbo_sri"] / (images[0].numel() * math.log(2)))
    without = small_model(**options, cross_order_kl=False)
    torch.testing.assert_close(without.score_own(scene, images)["elbo_sri"], elbo)


@pytest.mark.parametrize("scene_dim", [None, 12])
@torch.no_grad()
def test_log_weight_is_joint_minus_posterior(scene_dim: int | None) -> None:
    """Against torch.distributions, in float64."""
    model, images = small_model(scene_dim=scene_dim), batch_of(2)
    found = model.log_weight(images, noise_for([0, 1]))
    scene = model(images, noise_for([0, 1]))
    latents = {name: value.double() for name, value in scene.latents.items()}
    normal = torch.distributions.Normal
    pixels = normal(scene.components.double(), 0.7).log_prob(images.double().unsqueeze(1))
    expected = (scene.log_masks.double() + pixels).logsumexp(dim=1).sum(dim=(1, 2, 3))
    parameters = model.prior(scene.latents["sample"], scene.latents.get("scene_sample"))
    prior = normal(*(x.double() for x in parameters))
    posterior = normal(latents["mean"], latents["scale"])
    slots = latents["sample"]
    expected += (prior.log_prob(slots) - posterior.log_prob(slots)).sum(dim=(1, 2))
    if scene_dim is not None:
        s = latents["scene_sample"]
        posterior = normal(latents["scene_mean"], latents["scene_scale"])
        expected += (normal(0.0, 1.0).log_prob(s) - posterior.log_prob(s)).sum(dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0.0)


# ---------------------------------------------------------------- precision, compilation, training


def test_relations_are_in_float32_under_autocast() -> None:
    model, images = small_model().train(), batch_of(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scene = model(images, noise_for([0, 1]))
        terms = model.loss_terms(scene, images)
    values = [value for value in scene.latents.values() if value.is_floating_point()]
    assert {value.dtype for value in values} == {torch.float32}
    assert {kl.dtype for term in terms.values() for kl in term.kl.values()} == {torch.float32}
    model.objective(terms, num_dimensions=images[0].numel()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_is_compiled() -> None:
    model = small_model(compile="default")
    model.configure_model()
    model.configure_model()  # may be called twice
    encoder: Any = model.segregation
    assert encoder.network._compiled_call_impl is not None
    assert model._piece(SRI._relate) is SRI._relate  # in evaluation
    model.train()
    assert model._piece(SRI._relate) is not SRI._relate
    assert deepcopy(model)._piece(SRI._relate) is model._piece(SRI._relate)  # with its own weights
    with torch.no_grad():
        assert model._piece(SRI._relate) is SRI._relate
    assert small_model(compile="default", shared_decoder=True).state_dict()
    assert "_orig_mod" not in "".join(model.state_dict())


@pytest.mark.slow
def test_compiled_model_has_the_same_loss() -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    images, losses, gradients = batch_of(2), [], []
    with inductor.patch(fallback_random=True):  # its own generator draws other numbers
        for mode in (None, "default"):
            model = small_model(compile=mode).train()
            model.configure_model()
            torch.manual_seed(5)
            loss = model.objective(model.loss_terms(model(images), images), images[0].numel())
            loss.backward()
            losses.append(loss.detach())
            gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-2)


def test_trains_and_reports_both_bounds() -> None:
    model, loader = small_model(), DataLoader(RandomImages(32), 2)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", **dict.fromkeys(quiet, False))  # type: ignore[arg-type]
    trainer.fit(model, loader)
    geco: Any = model.objective
    assert geco.step == 2
    assert (geco.beta != 1.0).all()
    (scores,) = trainer.validate(model, loader, verbose=False)
    assert scores["val/elbo_sri"] < scores["val/elbo"]
    assert scores["val/bits_per_dim_sri"] > scores["val/bits_per_dim"]


# ---------------------------------------------------------------- cost


def count_step(model: SRI, batch_size: int) -> Counts:
    """Counts of forward, loss, backward and the objective's update."""
    images = torch.rand(batch_size, 3, model.image_size, model.image_size)
    model.train()
    with count_operations() as counts:
        terms = model.loss_terms(model(images), images)
        model.objective(terms, num_dimensions=images[0].numel()).backward()
        model.objective.update()
    return counts


@pytest.fixture(scope="module")
def counts() -> Counts:
    """Of SRI-MoG, K = 9, 64 px."""
    return count_step(SRI(9, 64), 2)


def test_floating_point_operations(counts: Counts) -> None:
    """At most 645 GFLOP per step at batch 32; the plain formulation needs 933."""
    assert 600e9 < 16 * counts.flops <= 645e9


def test_kernels(counts: Counts) -> None:
    """1321 forward and backward with torch 2.15, 1327 with 2.11; the plain formulation needs 5993."""
    assert 500 < counts.kernels.total() <= 1600
    few, many = (count_step(SRI(3, 32, **SMALL), size).kernels for size in (2, 5))
    assert few == many


def test_one_lstm_call_where_the_inputs_are_known() -> None:
    """The prior and the posterior at known slots; the imagined ones come one after the other."""
    model, calls = SRI(9, 32, **SMALL), []
    for part in model.modules():
        if isinstance(part, nn.LSTM):
            part.register_forward_hook(lambda *_: calls.append(1))
    assert count_step(model, 2).kernels["argmin"] == 9
    assert len(calls) == 2


def test_slots_cost_kernels_only_where_they_must() -> None:
    """Seeds, imagined slots and matches are found one after the other; all else treats all slots at once."""
    few, many = (count_step(SRI(k, 32, **SMALL), 1).kernels.total() for k in (5, 10))
    assert 0 < many - few <= 5 * 80


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "hungarian"])
def test_nothing_waits_for_the_device(variant: str) -> None:
    counts = count_step(SRI(4, 32, **{**SMALL, **VARIANTS[variant]}), 2)
    assert counts.kernels
    assert not counts.syncs
    assert not counts.host_reads


def test_hungarian_waits_for_the_device() -> None:
    assert count_step(SRI(4, 32, **SMALL, order="hungarian"), 2).host_reads


@pytest.mark.gpu
def test_nothing_waits_for_a_gpu() -> None:
    model = SRI(4, 32, **SMALL).to("cuda").train()
    images = torch.rand(2, 3, 32, 32, device="cuda")
    optimizer: Any = model.configure_optimizers()
    for mode in ("default", "error"):  # the first step sets up libraries
        torch.cuda.set_sync_debug_mode(mode)
        try:
            optimizer.zero_grad()
            terms = model.loss_terms(model(images), images)
            model.objective(terms, num_dimensions=images[0].numel()).backward()
            optimizer.step()
            model.objective.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
