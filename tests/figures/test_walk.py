"""Walks: every frame is a draw of the prior, neighbours are alike, batches change nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from lightning_genesis.figures import WalkNoise, random_walk, walk_frames, write_gif
from lightning_genesis.models import GenesisV2
from lightning_genesis.scene import IndexedNoise, Noise, Scene, draw_normal


class Fake(nn.Module):
    """Remembers what it was asked for; its images are its latents."""

    def __init__(self, scene_dim: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scene_dim = scene_dim
        self.asked: list[dict[str, Any]] = []

    def sample(
        self,
        num_images: int,
        num_slots: int | None = None,
        temperature: float = 1.0,
        noise: Noise | None = None,
        scene_latent: Tensor | None = None,
    ) -> Scene:
        draws = temperature * draw_normal(noise, (num_images, num_slots or 2, 3, 4, 4), self.weight)
        self.asked.append({"scene_latent": scene_latent, "draws": draws})
        return Scene(draws, torch.zeros(num_images, num_slots or 2, 1, 4, 4).log_softmax(dim=1))


@pytest.mark.parametrize("frame", [0, 7, 15, 29, 30])
def test_every_frame_is_standard_normal(frame: int) -> None:
    noise = WalkNoise(3, [frame])
    normal = noise.normal((1, 20_000), torch.zeros(1)).flatten().numpy()
    assert stats.kstest(normal, "norm").pvalue > 0.01
    uniform = noise.uniform((1, 20_000), torch.zeros(1)).flatten().numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert uniform.min() >= 0.0
    assert uniform.max() < 1.0


def test_neighbours_are_alike_and_frames_a_period_apart_are_independent() -> None:
    frames = [0, 1, 10, 20, 30]
    draws = WalkNoise(0, frames, period=20).normal((5, 50_000), torch.zeros(1)).double().numpy()
    correlation = np.corrcoef(draws)
    # within a period the correlation is the cosine of the angle between two frames
    assert correlation[0, 1] == pytest.approx(np.cos(np.pi / 40), abs=0.01)
    assert correlation[0, 2] == pytest.approx(np.cos(np.pi / 4), abs=0.01)
    assert correlation[0, 3] == pytest.approx(0.0, abs=0.02)
    assert correlation[0, 4] == pytest.approx(0.0, abs=0.02)


def test_a_walk_does_not_depend_on_its_batches() -> None:
    like = torch.zeros(1)
    noise = WalkNoise(5, range(40))
    whole = [noise.normal((40, 6), like), noise.normal((40, 2, 3), like)]
    parts: list[list[Tensor]] = [[], []]
    for frames in (range(0, 13), range(13, 40)):
        part = WalkNoise(5, frames)
        parts[0].append(part.normal((len(frames), 6), like))
        parts[1].append(part.normal((len(frames), 2, 3), like))
    assert all(torch.equal(one, torch.cat(other)) for one, other in zip(whole, parts, strict=True))


def test_a_scene_variable_walks_while_the_slots_stand_still() -> None:
    model: Any = Fake(scene_dim=500)
    scenes = list(random_walk(model, 50, temperature=2.0, batch_size=20))
    assert [len(scene.components) for scene in scenes] == [20, 20, 10]
    latent = torch.cat([asked["scene_latent"] for asked in model.asked])
    assert latent.shape == (50, 500)
    assert latent[17].std() == pytest.approx(2.0, rel=0.1)
    assert torch.equal(latent, 2.0 * WalkNoise(0, range(50)).normal((50, 500), latent))
    draws = torch.cat([asked["draws"] for asked in model.asked])
    assert (draws == draws[:1]).all()
    held, walked = draws[0].flatten()[:90], latent[0, :90] / 2.0
    assert abs(float(torch.corrcoef(torch.stack([held / 2.0, walked]))[0, 1])) < 0.4  # not the same numbers


def test_other_models_walk_in_all_their_latents() -> None:
    model: Any = Fake(scene_dim=None)
    draws = torch.cat([scene.components for scene in random_walk(model, 50, num_slots=4, seed=1)])
    assert torch.equal(draws, WalkNoise(1, range(50)).normal((50, 4, 3, 4, 4), draws))
    assert model.asked[0]["scene_latent"] is None
    assert torch.equal(draws[30], IndexedNoise(1, [2]).normal((1, 4, 3, 4, 4), draws)[0])


def test_walk_of_a_model_does_not_depend_on_its_batches() -> None:
    torch.manual_seed(0)
    model = GenesisV2(3, 32, feature_dim=8, latent_dim=8).eval()
    one, other = (list(random_walk(model, 9, batch_size=size)) for size in (9, 4))
    images = [torch.cat([scene.reconstruction for scene in walk]) for walk in (one, other)]
    assert torch.allclose(*images, atol=1e-6)
    steps = (images[0][1:] - images[0][:-1]).abs().mean()
    assert 0.0 < steps < (images[0][0] - images[0][8]).abs().mean()


def test_gif_is_read_back(tmp_path: Path) -> None:
    model: Any = Fake(scene_dim=None)
    frames = walk_frames(random_walk(model, 5, batch_size=2))
    assert len(frames) == 5
    path = tmp_path / "new" / "walk.gif"
    write_gif(path, frames, frames_per_second=5)
    assert [file.name for file in path.parent.iterdir()] == ["walk.gif"]
    with Image.open(path) as animation:
        assert animation.n_frames == 5
        assert animation.info["loop"] == 0
        for number, frame in enumerate(frames):
            animation.seek(number)
            assert animation.info["duration"] == 200
            shown = np.asarray(animation.convert("RGB")).astype(float) / 255.0
            assert np.abs(shown - frame.permute(1, 2, 0).numpy()).mean() < 0.02
