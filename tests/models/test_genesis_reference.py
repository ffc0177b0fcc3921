"""The published GENESIS implementation's own numbers (specification §9.6, §12.2, §12.3, §12.7)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_genesis.models import Genesis
from lightning_genesis.scene import Scene
from tests.compare import GRADIENT, TOTAL, assert_near, statistics
from tests.models.genesis_fixture import ForwardNoise, Step, fixture_model, slot_kl, training_step
from tests.reference import FixtureNoise, images


@pytest.fixture(scope="module")
def activations() -> dict[str, Tensor]:
    """Outputs of the modules in the training step by name; filled by `step`."""
    return {}


@pytest.fixture(scope="module")
def step(activations: dict[str, Tensor]) -> Iterator[Step]:
    model = fixture_model()
    parts = dict(model.network.named_modules())
    names = (
        "mask_vae.encoder.layers.0",
        "mask_vae.encoder",
        "mask_vae.decoder",
        "component_vae.encoder.11",
        "component_vae.decoder",
    )
    handles = [
        parts[name].register_forward_hook(
            lambda _, __, output, name=name: activations.update({name: output.detach().clone()})
        )
        for name in names
    ]
    yield training_step(model)
    for handle in handles:
        handle.remove()


@dataclass
class Evaluation:
    model: Genesis
    scene: Scene
    nll: Tensor


@torch.no_grad()
def evaluate(**options: Any) -> Evaluation:
    model = fixture_model(**options).eval()
    batch = images()
    scene = model(batch, ForwardNoise())
    return Evaluation(model, scene, model.loss_terms(scene, batch)["genesis"].nll)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate()


# ---------------------------------------------------------------- parameter counts


@pytest.mark.parametrize(
    ("image_size", "options", "expected"),
    [
        (32, {}, 4_559_620),
        (64, {}, 12_620_548),
        (128, {}, 13_406_980),
        (256, {}, 16_552_708),
        (64, {"component_prior": False}, 12_529_892),
        (64, {"autoregressive_prior": False}, 12_257_924),
        (64, {"symmetric_components": True}, 14_857_252),
        (32, {"two_stage": False}, 4_342_916),
        (64, {"two_stage": False}, 12_207_236),
        (128, {"two_stage": False}, 12_207_236),
        (256, {"two_stage": False}, 12_207_236),
    ],
)
def test_number_of_parameters(image_size: int, options: dict[str, Any], expected: int) -> None:
    model = Genesis(7, image_size, **options)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_number_of_parameters_by_part() -> None:
    model = Genesis(7, 64)
    masks, components = model.network.mask_vae, model.network.component_vae
    assert masks is not None
    assert components is not None
    assert model.slot_prior is not None
    assert model.component_prior is not None
    parts: dict[str, list[torch.nn.Module]] = {
        "attention core": [masks.encoder, masks.mean_head, masks.scale_head, masks.decoder],
        "posterior LSTM": [masks.lstm],
        "posterior linear": [masks.linear],
        "component encoder": [components.encoder],
        "component decoder": [components.decoder],
        "prior LSTM": [model.slot_prior.lstm],
        "prior linear": [model.slot_prior.linear],
        "prior MLP": [model.component_prior],
    }
    found = {name: sum(p.numel() for m in part for p in m.parameters()) for name, part in parts.items()}
    assert found == {
        "attention core": 11_550_817,
        "posterior LSTM": 230_400,
        "posterior linear": 16_512,
        "component encoder": 336_480,
        "component decoder": 33_059,
        "prior LSTM": 329_728,
        "prior linear": 32_896,
        "prior MLP": 90_656,
    }


# ---------------------------------------------------------------- training mode


def test_activations(step: Step, activations: dict[str, Tensor]) -> None:
    assert_near(statistics(activations["mask_vae.encoder.layers.0"]), [0.00416579, 0.544008])
    assert_near(statistics(activations["mask_vae.encoder"]), [-0.00192214, 0.280169])
    assert_near(statistics(activations["mask_vae.decoder"]), [0.0020505, 0.545469])
    assert_near(statistics(activations["component_vae.encoder.11"]), [0.0022525, 0.387686])
    assert_near(statistics(activations["component_vae.decoder"]), [-0.0698011, 0.540338])


def test_posteriors(step: Step) -> None:
    mean, scale = step.scene.latents["mean"], step.scene.latents["scale"]
    assert_near(mean[0, 0, :4], [0.11838, -0.389014, -0.254333, 0.0819385])
    assert_near(scale[0, 0, :4], [0.655395, 0.884746, 0.91161, 1.39245])
    assert_near(mean[1, 4, :4], [0.00178208, 0.0858721, -0.0579236, 0.0832724])
    assert_near(mean[0, 0, 64:68], [-0.496022, 0.176732, 0.364554, -0.229035])
    assert_near(scale[0, 0, 64:68], [0.866043, 1.23669, 1.05824, 0.903608])


def test_masks(step: Step) -> None:
    log_masks = step.scene.log_masks
    assert_near(log_masks[0].exp().mean(dim=(1, 2, 3)), [0.49776, 0.251162, 0.12594, 0.0617431, 0.0633948])
    assert_near(log_masks[1, :, 0, 30, 40], [-0.234365, -2.03604, -2.92875, -4.17112, -4.65819])
    assert_near(log_masks.exp().sum(dim=1), torch.ones(2, 1, 64, 64), TOTAL)


MASK_KL = [
    [7.13725, 0.809845, 0.253571, 7.72777, 0.206955],
    [6.8149, 1.60276, 6.62497, 5.01524, 5.45947],
]
COMPONENT_KL = [
    [3.22166, 2.60542, -0.872918, 6.20057, 9.27401],
    [0.144679, 5.06288, 1.17747, 11.0188, 5.29885],
]


def test_terms(step: Step) -> None:
    assert_near(step.terms.nll, [8232.48, 8199.02], TOTAL)
    of_slots = slot_kl(step.model, step.scene)
    for name, expected in (("mask", MASK_KL), ("component", COMPONENT_KL)):
        for found, values in zip(of_slots[name], expected, strict=True):
            assert_near(found, values)
        assert_near(step.terms.kl[name], of_slots[name].sum(dim=1))


def test_reconstruction(step: Step) -> None:
    reconstruction = step.scene.reconstruction
    assert_near(reconstruction.mean(dim=(1, 2, 3)), [0.410156, 0.485548])
    assert_near(reconstruction[0, :, 10, 20], [0.536299, 0.399731, 0.35956])


def test_gradients(step: Step) -> None:
    gradients = {name: parameter.grad for name, parameter in step.model.named_parameters()}
    assert_near(step.loss, 8258.14, TOTAL)
    assert_near(step.gradient_norm, 5007.9, GRADIENT)
    for name, expected in (
        ("network.mask_vae.encoder.layers.0.conv.weight", 53.6824),
        ("slot_prior.lstm.weight_ih_l0", 25.0152),
        ("component_prior.0.weight", 36.1561),
    ):
        gradient = gradients[name]
        assert gradient is not None
        assert_near(gradient.norm(), expected, GRADIENT)
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_batch_statistics(step: Step) -> None:
    """All slots of all images make the decoder's statistics."""
    state = step.model.network.mask_vae.state_dict()  # type: ignore[union-attr]
    for name, expected in (
        ("encoder.layers.0.value_norm.running_mean", [0.034075, -0.039264, 0.0350947]),
        ("encoder.layers.0.value_norm.running_var", [0.947584, 0.857577, 0.839476]),
        ("decoder.layers.5.gate_norm.running_mean", [0.0828491, 0.0270321, 0.0254028]),
        ("decoder.layers.5.gate_norm.running_var", [0.966099, 0.930941, 0.944948]),
    ):
        assert_near(state[name][:3], expected)


# ---------------------------------------------------------------- evaluation mode


def test_evaluation(evaluation: Evaluation) -> None:
    scene, latents = evaluation.scene, evaluation.scene.latents
    assert_near(latents["mean"][0, 0, :4], [-0.10227, -0.106385, -0.0710218, 0.0595264])
    assert_near(latents["scale"][0, 0, :4], [0.900558, 0.937139, 0.932256, 1.03442])
    assert_near(latents["mean"][1, 4, :4], [0.0725816, -0.00191443, -0.151915, 0.147845])
    assert_near(
        scene.log_masks[0].exp().mean(dim=(1, 2, 3)), [0.505628, 0.249967, 0.123577, 0.0610932, 0.0597351]
    )
    assert_near(scene.log_masks[1, :, 0, 30, 40], [-0.683754, -1.38638, -2.089, -2.79166, -2.81054])
    assert_near(latents["mean"][0, 0, 64:68], [-0.40079, 0.144573, 0.466742, -0.15374])
    assert_near(latents["scale"][0, 0, 64:68], [0.901094, 1.24691, 1.05509, 0.923597])
    assert_near(evaluation.nll, [8223.84, 8200.49], TOTAL)
    assert_near(scene.reconstruction.mean(dim=(1, 2, 3)), [0.410296, 0.485342])
    assert_near(scene.reconstruction[0, :, 10, 20], [0.539953, 0.411004, 0.353398])


EVALUATION_MASK_KL = [
    [1.04945, 0.638046, 0.145729, 6.48041, -1.68948],
    [-0.662338, 3.1124, 6.6595, 3.43934, 2.82166],
]
EVALUATION_COMPONENT_KL = [
    [3.36768, 2.81452, -0.628305, 4.68204, 9.04731],
    [-1.39952, 5.14641, -0.31125, 10.2177, 4.64377],
]


def test_divergences_in_evaluation(evaluation: Evaluation) -> None:
    of_slots = slot_kl(evaluation.model, evaluation.scene)
    for name, expected in (("mask", EVALUATION_MASK_KL), ("component", EVALUATION_COMPONENT_KL)):
        for found, values in zip(of_slots[name], expected, strict=True):
            assert_near(found, values)


@pytest.mark.parametrize(
    ("options", "mean", "pixel"),
    [
        ({"released_sampler": True}, [0.453078, 0.486925], [0.542713, 0.53355, 0.414343]),
        ({}, [0.453083, 0.486889], [0.542643, 0.533475, 0.414272]),
        (
            {"two_stage": False, "released_sampler": True},
            [0.503338, 0.569732],
            [0.670558, 0.488349, 0.549169],
        ),
        ({"two_stage": False}, [0.502965, 0.569686], [0.670451, 0.488228, 0.549154]),
    ],
)
def test_sample(options: dict[str, Any], mean: list[float], pixel: list[float]) -> None:
    picture = fixture_model(**options).eval().sample(2, noise=FixtureNoise()).reconstruction
    # The two samplers differ by 1e-5 to 1e-3, so the printed digits have to agree.
    assert_near(picture.mean(dim=(1, 2, 3)), mean, 4e-6)
    assert_near(picture[1, :, 5, 50], pixel, 8e-6)


# ---------------------------------------------------------------- GENESIS-S


def test_genesis_s(step: Step) -> None:
    single = training_step(fixture_model(two_stage=False))
    assert_near(single.scene.log_masks, step.scene.log_masks)
    for name, value in single.scene.latents.items():
        assert_near(value, step.scene.latents[name][:, :, :64])
    assert_near(single.terms.kl["mask"], step.terms.kl["mask"])
    assert list(single.terms.kl) == ["mask"]
    assert_near(single.terms.nll, [8176.42, 8345.56], TOTAL)
    assert_near(single.scene.reconstruction.mean(dim=(1, 2, 3)), [0.498441, 0.57687])
    assert_near(single.scene.reconstruction[0, :, 10, 20], [0.627091, 0.471453, 0.408238])
    assert_near(single.loss, 8281.81, TOTAL)
    assert_near(single.gradient_norm, 6526.41, GRADIENT)


def test_genesis_s_in_evaluation(evaluation: Evaluation) -> None:
    single = evaluate(two_stage=False)
    assert_near(single.scene.log_masks, evaluation.scene.log_masks)
    assert_near(single.nll, [8125.16, 8266.76], TOTAL)
    assert_near(single.scene.reconstruction.mean(dim=(1, 2, 3)), [0.501711, 0.568192])
    assert_near(single.scene.reconstruction[0, :, 10, 20], [0.605966, 0.499871, 0.413469])


# ---------------------------------------------------------------- other sizes and options


@pytest.mark.parametrize(
    ("image_size", "num_slots", "options", "err", "loss", "norm"),
    [
        (32, 3, {}, [2023.67, 2014.89], 2045.63, 889.694),
        # another size and other options, each for itself, are here
        pytest.param(*(128, 3, {}, [32228.6, 32391.7], 32348.6, 18936.3), marks=pytest.mark.slow),
        (32, 3, {"two_stage": False}, [2052.24, 2062.98], 2065.52, 1356.25),
        pytest.param(
            *(128, 3, {"two_stage": False}, [32710.1, 32781.8], 32760.6, 24909.3), marks=pytest.mark.slow
        ),
        (64, 5, {"norm": "instance"}, [8232.0, 8196.64], 8256.63, 4915.68),
        (64, 5, {"symmetric_components": True}, [8130.08, 8141.87], 8171.19, 2941.8),
        (64, 5, {"component_prior": False}, [8232.48, 8199.02], 8252.24, 5000.14),
        (64, 1, {}, [8132.14, 8418.44], 8277.71, 5560.11),
    ],
)
def test_other_sizes_and_options(
    image_size: int, num_slots: int, options: dict[str, Any], err: list[float], loss: float, norm: float
) -> None:
    found = training_step(fixture_model(num_slots, image_size, **options))
    assert_near(found.terms.nll, err, TOTAL)
    assert_near(found.loss, loss, TOTAL)
    assert_near(found.gradient_norm, norm, GRADIENT)


@pytest.mark.gpu
def test_reference_on_a_gpu() -> None:
    model = fixture_model().to("cuda")
    batch = images().to("cuda")
    terms = model.loss_terms(model(batch, ForwardNoise()), batch)["genesis"]
    assert_near(terms.nll, [8232.48, 8199.02], 1e-3)  # TF32
