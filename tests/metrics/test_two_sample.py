"""Measures of generation on cases with known answers."""

import colorsys
from math import sqrt

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from lightning_genesis.evaluation.generation import Gathered, compare, gather, recombined, reconstructions
from lightning_genesis.metrics.object_statistics import (
    count_blobs,
    hue,
    object_statistics,
    total_variation,
)
from lightning_genesis.metrics.two_sample import (
    ClassifierRecipe,
    RandomFeatures,
    component_frechet,
    frechet_distance,
    random_net_mmd,
    two_sample_accuracy,
)
from lightning_genesis.models import GenesisV2, MONet
from lightning_genesis.scene import Scene
from tests.test_sampling import small

QUICK = ClassifierRecipe(width=8, steps=120)


def squares(count: int, number: int, seed: int = 0, size: int = 32) -> Tensor:
    """Images of so many coloured squares that do not touch, on black."""
    generator = np.random.default_rng(seed)
    images = np.zeros((count, 3, size, size), np.float32)
    for image in images:
        places = generator.permutation(9)[:number]
        for place in places:
            row, column = (
                10 * (place // 3) + generator.integers(2, 4),
                10 * (place % 3) + generator.integers(2, 4),
            )
            image[:, row : row + 6, column : column + 6] = generator.uniform(0.4, 1.0, 3)[:, None, None]
    return torch.from_numpy(images)


def test_one_distribution_cannot_be_told_from_itself() -> None:
    found = two_sample_accuracy(squares(300, 2), squares(300, 2, seed=1), seeds=(0, 1), recipe=QUICK)
    assert found.num_test == 300
    assert found.low < 0.5 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * sqrt(0.25 / 300), rel=0.02)
    assert found.accuracy == pytest.approx(sum(found.by_seed) / 2)


def test_one_object_more_is_told() -> None:
    found = two_sample_accuracy(squares(300, 2), squares(300, 3, seed=1), seeds=(0,), recipe=QUICK)
    assert found.low > 0.6


def test_the_classifier_is_the_same_again_and_leaves_torchs_generator_alone() -> None:
    first, second, state = squares(20, 1), squares(25, 2), torch.get_rng_state()
    recipe = ClassifierRecipe(width=8, steps=5)
    one, two = (two_sample_accuracy(first, second, (3,), recipe) for _ in range(2))
    assert one == two
    assert one.num_test == 20  # cut to the smaller set
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="four images"):
        two_sample_accuracy(first[:3], second)
    with pytest.raises(ValueError, match="expected the same"):
        two_sample_accuracy(first, second[..., :16])


def test_random_features_are_always_the_same_and_their_distance_orders_sets() -> None:
    images = squares(100, 2)
    torch.testing.assert_close(RandomFeatures(1)(images), RandomFeatures(1)(images), rtol=0, atol=0)
    assert (RandomFeatures(1)(images) - RandomFeatures(2)(images)).abs().max() > 0.01
    same, more, many = (random_net_mmd(images, squares(100, n, seed=1)) for n in (2, 3, 6))
    assert abs(same) < more < many


def test_frechet_distances_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(400, 3, generator=generator).double()
    second = 2.0 * torch.randn(500, 3, generator=generator).double() @ torch.rand(3, 3).double() + 1.0
    means = [x.mean(dim=0).numpy() for x in (first, second)]
    covariances = [np.cov(x.numpy().T) for x in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-9)
    # a shift of s in every pixel along what varies: s² times the number of pixels
    base = torch.rand(50, 1, 1, 1, generator=generator).expand(-1, 3, 4, 4)
    assert component_frechet(base, base + 0.1) == pytest.approx(0.01 * 48, rel=1e-4)
    assert component_frechet(base, base) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("number", [0, 1, 4])
def test_blobs_are_counted_on_any_plain_background(number: int) -> None:
    images = squares(6, number)
    assert count_blobs(images).tolist() == [number] * 6
    assert count_blobs(1.0 - images).tolist() == [number] * 6
    images[:, :, 0, 15] = 1.0  # a speck
    assert count_blobs(images).tolist() == [number] * 6


def test_objects_are_slots_that_are_no_background() -> None:
    """Slot 1 is the background, slot 0 a red square at the top left, slot 2 a speck, slot 3 a blue bar."""
    segmentation = torch.full((1, 20, 20), 1)
    segmentation[:, 2:6, 2:6], segmentation[:, 19, 19], segmentation[:, 10:12, 5:15] = 0, 2, 3
    masks = torch.nn.functional.one_hot(segmentation, 4).permute(0, 3, 1, 2).unsqueeze(2).float()
    colours = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    scene = Scene(colours[None, :, :, None, None].expand(1, 4, 3, 20, 20), (masks + 1e-6).log())
    found = object_statistics(scene)
    assert found.present.tolist() == [[True, False, False, True]]
    assert found.num_objects.tolist() == [2]
    values = {name: value[0][[0, 3]].tolist() for name, value in found.factors.items()}
    assert values["area"] == pytest.approx([16 / 400, 20 / 400])
    assert values["row"] == pytest.approx([4 / 20, 11 / 20])
    assert values["column"] == pytest.approx([4 / 20, 10 / 20])
    assert values["hue"] == pytest.approx([0.0, 2 / 3])


def test_hue_is_that_of_colorsys() -> None:
    colours = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = [colorsys.rgb_to_hsv(*colour)[0] for colour in colours.tolist()]
    torch.testing.assert_close(hue(colours).tolist(), expected)
    assert hue(torch.full((1, 3), 0.3)).item() == 0.0


def test_total_variation() -> None:
    assert total_variation(torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 2, 3])) == pytest.approx(0.25)
    assert total_variation(torch.tensor([0, 1]), torch.tensor([2, 3])) == 1.0
    assert total_variation(torch.tensor([0.05, 0.95]), torch.tensor([0.01, 1.0]), bins=10) == 0.0
    assert total_variation(torch.tensor([]), torch.tensor([1])) == 1.0
    assert total_variation(torch.tensor([]), torch.tensor([])) == 0.0


def test_one_object_more_shows_in_every_measure() -> None:
    reference, same, more = (
        Gathered(images, count_blobs(images))
        for images in (squares(120, 2), squares(120, 2, seed=1), squares(120, 3, seed=2))
    )
    near, far = compare(reference, same, seeds=()), compare(reference, more, seeds=())
    assert near["blob_count_tv"] == 0.0
    assert far["blob_count_tv"] == 1.0
    assert far["random_net_mmd"] > 3 * abs(near["random_net_mmd"])
    assert far["component_frechet"] > near["component_frechet"]
    assert "two_sample_accuracy" not in near


def test_recombined_scenes_use_every_slot_once() -> None:
    model = small(GenesisV2)
    slots = torch.arange(10.0)[:, None, None].expand(10, 3, 8) + torch.arange(3.0)[:, None] / 10
    found = torch.cat([scene.latents["sample"] for scene in recombined(model, slots)])
    for slot in range(3):  # each stays in its place, but beside others
        assert found[:, slot].sort(dim=0).values.equal(slots[:, slot])
    assert (found[:, 0].round() != found[:, 1].round()).any()
    gathered = gather(recombined(model, slots))
    assert gathered.images.shape == (10, 3, 32, 32)
    assert gathered.objects is not None


def test_reconstructions_are_what_the_decoder_can_make() -> None:
    """MONet mixes by attention masks, which no sample has: its reference is mixed by decoded ones."""

    class Images:
        def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
            images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            return {"image": images[indices], "index": torch.tensor(indices)}

    model = small(MONet)
    (scene,) = reconstructions(model, Images(), range(8))
    assert scene.slot_latents is not None
    with torch.no_grad():
        decoded = model.decode(scene.slot_latents)  # type: ignore[operator]
    torch.testing.assert_close(scene.reconstruction, decoded.reconstruction)
    assert scene.attention_log_masks is not None
    assert not torch.allclose(scene.log_masks, scene.attention_log_masks)
