"""Every model under autocast: what is logged, optimised and kept is float32, and finite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_genesis import models
from lightning_genesis.models import SceneModel
from lightning_genesis.scene import IndexedNoise
from tests.quick import few
from tests.ranks.tiny import NAMES, tiny

DTYPES = [torch.bfloat16, torch.float16]


def build(name: str, **options: Any) -> SceneModel:
    torch.manual_seed(0)
    return getattr(models, name)(num_slots=3, image_size=32, **{**tiny(name).options, **options})


def images_of(size: int = 2) -> Tensor:
    return torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", few(DTYPES, torch.bfloat16))  # what differs in float16 is a range
@pytest.mark.parametrize("name", NAMES)
def test_terms_are_float32_and_finite(name: str, dtype: torch.dtype) -> None:
    model, images = build(name).train(), images_of()
    with torch.autocast("cpu", dtype):
        scene = model(images)
        terms = model.loss_terms(scene, images)
        loss = model.objective(terms, num_dimensions=images[0].numel())
        elbo = model.elbo(scene, images)
    assert list(terms) == list(model.branches)
    values = [
        *(term.nll for term in terms.values()),
        *(x for term in terms.values() for x in term.kl.values()),
    ]
    values += [loss] if elbo is None else [loss, elbo]
    assert {value.dtype for value in (*values, scene.log_masks)} == {torch.float32}
    assert all(value.isfinite().all() for value in values)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    for gradient in gradients:
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
    model.objective.update()
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in model.objective.buffers())


@pytest.mark.parametrize("name", NAMES)
def test_autocast_reaches_the_network(name: str) -> None:
    """The test above would be about nothing otherwise."""
    model, seen = build(name).train(), set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            module.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(images_of())
    assert torch.bfloat16 in seen


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_normalised(name: str) -> None:
    """To what float32 gives; bfloat16 would leave one to two digits."""
    model, images = build(name).eval(), images_of()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        scene = model(images, IndexedNoise(0, [0, 1]))
    sums = scene.log_masks.float().exp().sum(dim=1)
    assert float((sums - 1.0).abs().max()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_those_of_float64(name: str) -> None:
    """What the network says under autocast, put through the terms once more in float64."""
    model, images = build(name).eval(), images_of()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        scene = model(images, IndexedNoise(0, [0, 1]))
        found = model.loss_terms(scene, images)
    single = Tensor.float
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x))
        expected = model.double().loss_terms(scene.map(_double), images.double())
    for branch, term in expected.items():
        assert term.nll.dtype == torch.float64
        torch.testing.assert_close(found[branch].nll.double(), term.nll, rtol=1e-5, atol=1e-3)
        for kl, value in term.kl.items():
            torch.testing.assert_close(found[branch].kl[kl].double(), value, rtol=1e-4, atol=1e-3)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"mask_consistency": True}, {"analytic_kl": True}])
@pytest.mark.parametrize("std", [0.7, 0.1])
def test_genesis_v2_is_close_to_float32(dtype: torch.dtype, options: dict[str, Any], std: float) -> None:
    """The same noise, weights and images: the network's rounding moves the error by less than 2 %."""
    model = build("GenesisV2", std=std, component_activation="linear", **options).eval()
    images, noise = images_of(4), [0, 1, 2, 3]
    with torch.no_grad():
        plain = model.loss_terms(model(images, IndexedNoise(0, noise)), images)["genesis_v2"]
        with torch.autocast("cpu", dtype):
            low = model.loss_terms(model(images, IndexedNoise(0, noise)), images)["genesis_v2"]
    assert not torch.equal(plain.nll, low.nll)
    scale = abs(float(plain.nll.mean()) - images[0].numel() * (math.log(std) + 0.5 * math.log(2 * math.pi)))
    assert float((plain.nll - low.nll).abs().max()) < 0.02 * scale
