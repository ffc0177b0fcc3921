"""The contracts."""

import numpy as np
import pytest
import torch

from lightning_genesis.scene import IndexedNoise, Scene, Terms, draw_normal, draw_uniform


def make_scene(batch: int = 3, slots: int = 4, size: int = 5) -> Scene:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, slots, 1, size, size, generator=generator)
    return Scene(
        components=torch.rand(batch, slots, 3, size, size, generator=generator),
        log_masks=logits.log_softmax(1),
        latents={"sample": torch.randn(batch, slots, 2, generator=generator)},
    )


def test_reconstruction_is_the_mean_of_the_mixture() -> None:
    scene = make_scene()
    masks, components = scene.log_masks.exp().numpy(), scene.components.numpy()
    expected = sum(masks[:, k] * components[:, k] for k in range(4))
    np.testing.assert_allclose(scene.reconstruction.numpy(), expected, rtol=1e-5)


def test_segmentation_takes_the_largest_and_the_first_on_ties() -> None:
    log_masks = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]).log()[:, :, None, None, None]
    scene = Scene(torch.zeros(2, 3, 3, 1, 1), log_masks)
    assert scene.segmentation().flatten().tolist() == [1, 0]
    with pytest.raises(ValueError, match="no attention masks"):
        scene.segmentation("attention")


def test_map_reaches_everything() -> None:
    inner = make_scene()
    scene = Scene(
        inner.components, inner.log_masks, auxiliary={"inner": inner}, num_active=torch.tensor([1, 2, 3])
    )
    half = scene[:2]
    assert half.components.shape[0] == half.auxiliary["inner"].latents["sample"].shape[0] == 2
    assert half.num_active is not None
    assert half.num_active.tolist() == [1, 2]
    copy = scene.clone()
    copy.components.zero_()
    assert scene.components.abs().sum() > 0
    assert scene.to("cpu").attention_log_masks is None


def test_indexed_noise_depends_on_the_image_alone() -> None:
    like = torch.zeros(())
    together = IndexedNoise(0, [7, 3, 5])
    a = together.uniform((3, 4), like), together.normal((3, 2), like)
    for row, index in enumerate((7, 3, 5)):
        alone = IndexedNoise(0, torch.tensor([index]))
        assert torch.equal(alone.uniform((1, 4), like)[0], a[0][row])
        assert torch.equal(alone.normal((1, 2), like)[0], a[1][row])
    other_seed = IndexedNoise(1, [7]).uniform((1, 4), like)[0]
    assert not torch.equal(other_seed, a[0][0])
    with pytest.raises(ValueError, match="3 images was asked for 2"):
        together.normal((2, 2), like)


def test_indexed_noise_has_the_right_moments_and_leaves_torch_alone() -> None:
    before = torch.get_rng_state()
    noise = IndexedNoise(0, range(200))
    normal = noise.normal((200, 500), torch.zeros((), dtype=torch.float64))
    assert normal.dtype == torch.float64
    assert normal.mean().abs() < 0.02
    assert (normal.var() - 1).abs() < 0.02
    uniform = noise.uniform((200, 500), torch.zeros(()))
    assert (uniform.mean() - 0.5).abs() < 0.01
    assert torch.equal(before, torch.get_rng_state())
    # streams of different images are independent
    correlation = np.corrcoef(normal.numpy())[np.triu_indices(200, 1)]
    assert np.abs(correlation).max() < 0.3


def test_without_noise_torch_draws() -> None:
    torch.manual_seed(0)
    expected = torch.randn(2, 3), torch.rand(2, 3)
    torch.manual_seed(0)
    like = torch.zeros(())
    assert torch.equal(draw_normal(None, (2, 3), like), expected[0])
    assert torch.equal(draw_uniform(None, (2, 3), like), expected[1])


def test_total_kl() -> None:
    nll = torch.tensor([1.0, 2.0])
    assert Terms(nll, {}).total_kl.tolist() == [0.0, 0.0]
    assert Terms(nll, {"a": nll, "b": 2 * nll}).total_kl.tolist() == [3.0, 6.0]
