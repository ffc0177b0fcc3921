"""SRI on EfficientMORL's slots: what its parts tell each other, in training and in evaluation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.counting import count_operations
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.models import SRI, EfficientMORL
from lightning_genesis.objectives import SoftplusGECO
from lightning_genesis.scene import IndexedNoise

ENCODER: dict[str, Any] = {
    "latent_dim": 6,
    "feature_dim": 8,
    "decoder_dim": 8,
    "num_refinements": 2,
    "final_refinements": 2,
}


def small_model(objective: Any = None, **options: Any) -> SRI:
    """With weights large enough for everything to matter."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"scene_dim": 8, "hidden_dim": 8, "std": 0.3, "normalized_likelihood": False}
    encoder = ENCODER | options.pop("encoder_options", {})
    objective = objective or SoftplusGECO(goal=-1.0, speedup=10.0)
    model = SRI(3, 12, encoder="emorl", encoder_options=encoder, objective=objective, **{**common, **options})
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return model.eval()


def batch_of(size: int) -> Tensor:
    return torch.rand(size, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def noise_for(index: list[int]) -> IndexedNoise:
    return IndexedNoise(7, index)


def encoder_of(model: SRI) -> EfficientMORL:
    assert isinstance(model.segregation, EfficientMORL)
    return model.segregation


def test_segregation_is_emorl_itself() -> None:
    """The same code with the same weights and noise gives the same L_seg, all steps included."""
    model, images = small_model().train(), batch_of(2)
    scene = model(images, noise_for([0, 1]))
    alone = EfficientMORL(3, 12, **ENCODER, std=0.3).train()
    alone.load_state_dict(encoder_of(model).state_dict(), strict=False)
    expected = alone(images, noise_for([0, 1]))
    found = scene.auxiliary["segregation"]
    torch.testing.assert_close(found.latents["nll"], expected.latents["nll"])
    torch.testing.assert_close(found.latents["kl"], expected.latents["kl"])
    terms = model.loss_terms(scene, images)
    assert tuple(terms) == model.branches == ("segregation", "sri")
    assert [step.weight for step in terms["segregation"].steps] == pytest.approx([5 / 3, 4 / 3])
    assert terms["sri"].steps == ()
    order = scene.latents["order"]
    expected_mean = torch.gather(found.latents["mean"], 1, order.unsqueeze(2).expand(-1, -1, 6))
    assert torch.equal(scene.latents["mean"], expected_mean.detach())


def test_each_loss_trains_its_own_part() -> None:
    model, images = small_model().train(), batch_of(2)
    terms = model.loss_terms(model(images), images)
    encoder = [name for name, _ in model.named_parameters() if name.startswith("segregation.")]
    for branch in model.branches:
        model.zero_grad()
        term = terms[branch]
        sum((step.nll + step.total_kl).sum() for step in (*term.steps, term)).backward(retain_graph=True)
        trained = {name for name, p in model.named_parameters() if p.grad is not None}
        assert trained == (
            set(encoder)
            if branch == "segregation"
            else {n for n, _ in model.named_parameters()} - set(encoder)
        )


def test_refinement_follows_the_constraint_of_its_own_branch() -> None:
    model = small_model(SoftplusGECO(goal=-1.0, warmup_steps=0)).train()
    model.objective.beta.copy_(torch.tensor([2.0, 0.7]))
    weights = encoder_of(model).network.step_weights
    model(batch_of(2))
    assert weights.tolist() == pytest.approx([2.126928, 1.0])
    model.objective.beta.fill_(5.0)
    model.eval()(batch_of(2), noise_for([0, 1]))
    assert weights.tolist() == pytest.approx([2.126928, 1.0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"likelihood": "gaussian"},
        {"shared_decoder": True},
        {"segregation_loss": False, "shared_decoder": True},
    ],
)
@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_trains_evaluates_and_samples(options: dict[str, Any], surroundings: Any) -> None:
    model, images = small_model(**options).train(), batch_of(2)
    loss = model.objective(model.loss_terms(model(images), images), num_dimensions=images[0].numel())
    loss.backward()
    untrained = {name for name, p in model.named_parameters() if p.grad is None}
    expected = () if model.segregation_loss else ("segregation.network.layer_prior",)
    assert all(name.startswith(expected) for name in untrained)
    model.eval()
    with surroundings():
        scene = model(images.clone(), noise_for([0, 1]))
        assert model.elbo(scene, images).isfinite().all()
        assert model.sample(2, 5).components.shape == (2, 5, 3, 12, 12)
    found: list[Tensor] = []
    scene.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    assert len(found) > 10
    assert not any(tensor.requires_grad for tensor in found)
    single = model(images[1:], noise_for([1]))
    torch.testing.assert_close(
        single.latents["mean"], scene.latents["mean"][1:].clone(), rtol=1e-3, atol=1e-3
    )
    again = SRI(**model.hparams)
    again.load_state_dict(model.state_dict())


def test_nothing_waits_for_the_device() -> None:
    model, images = small_model().train(), batch_of(2)
    with count_operations() as counts:
        loss = model.objective(model.loss_terms(model(images), images), num_dimensions=images[0].numel())
        loss.backward()
        model.objective.update()
    assert counts.kernels
    assert not counts.syncs
    assert not counts.host_reads


@pytest.mark.parametrize("name", ["warmup_steps", "decay_rate", "decay_steps"])
def test_schedule_is_that_of_the_whole_model(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"encoder_options.{name} would be ignored"):
        small_model(encoder_options={name: 1})
