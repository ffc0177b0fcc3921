"""Walks through what a model can generate, as an animation.

SRI's authors show such videos of their scene variable; neither paper nor code says how they step.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import pi
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from lightning_genesis.figures.drawing import colour_masks, tile
from lightning_genesis.scene import IndexedNoise, Scene
from lightning_genesis.storage.files import replacing

if TYPE_CHECKING:
    from lightning_genesis.models import SceneModel

FRAMES_PER_SECOND = 6
"""Of SRI's released videos."""
PERIOD = 30
"""Frames from one scene to the next. Frames of SRI's videos are unlike each other from about 50 on."""
HELD = 0
"""Position of the noise that stays the same; the walk's own positions follow."""


class WalkNoise:
    """Noise for the frames of a walk that turns from one draw into the next.

    Between two independent draws `a` and `b` it is `a cos θ + b sin θ`, which is standard normal for every θ:
    each frame is as good a draw as any other, and the frames next to it are like it. Normal and uniform
    numbers both.

    Args:
        seed: the same for all frames.
        frames: numbers of the frames, `[B]`.
        period: frames from one draw to the next.
    """

    def __init__(self, seed: int, frames: Sequence[int], period: int = PERIOD) -> None:
        starts = [HELD + 1 + frame // period for frame in frames]
        self._from = IndexedNoise(seed, starts)
        self._to = IndexedNoise(seed, [start + 1 for start in starts])
        self._angle = torch.tensor([frame % period / period for frame in frames]) * pi / 2.0

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal numbers of `shape`, whose first axis is the frames."""
        angle = self._angle.to(like).view(-1, *[1] * (len(shape) - 1))
        return angle.cos() * self._from.normal(shape, like) + angle.sin() * self._to.normal(shape, like)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Numbers uniform in [0, 1) of `shape`, whose first axis is the frames."""
        return torch.special.ndtr(self.normal(shape, like)).clamp(max=1.0 - torch.finfo(like.dtype).eps)


@torch.no_grad()
def random_walk(
    model: "SceneModel",
    num_frames: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    num_slots: int | None = None,
    period: int = PERIOD,
    batch_size: int = 32,
) -> Iterator[Scene]:
    """Scenes of a walk through the prior, in batches of frames.

    A model with a scene variable walks in that alone: the noise of its slots stays the same, so that what
    moves is what the scene variable says. Any other model walks in all its latents.

    Args:
        model: in evaluation mode.
        num_frames: how many.
        seed: of the draws that it passes.
        temperature: factor on the scale of every latent.
        num_slots: slots of each; the model's own if None.
        period: frames from one draw of the prior to the next.
        batch_size: frames at once; the result does not depend on it.

    Raises:
        ConfigurationError: if the model has no prior to sample from.
    """
    like = next(model.parameters())
    for start in range(0, num_frames, batch_size):
        frames = range(start, min(start + batch_size, num_frames))
        walk = WalkNoise(seed, frames, period)
        if model.scene_dim is None:
            yield model.sample(len(frames), num_slots, temperature, walk)
        else:
            latent = temperature * walk.normal((len(frames), model.scene_dim), like)
            held = IndexedNoise(seed, [HELD] * len(frames))
            yield cast(Any, model).sample(len(frames), num_slots, temperature, held, scene_latent=latent)


def walk_frames(scenes: Iterable[Scene]) -> list[Tensor]:
    """Every frame as a picture `[3, H, W]`: the sample, and its masks in the colours of the slots."""
    frames = []
    for scene in scenes:
        rows = torch.stack([scene.reconstruction, colour_masks(scene)], dim=1)
        frames += [tile([*images.unsqueeze(1)], ["sample", "masks"]) for images in rows]
    return frames


def write_gif(
    path: str | Path, frames: Sequence[Tensor], frames_per_second: float = FRAMES_PER_SECOND
) -> None:
    """Writes pictures `[3, H, W]` of one size as a GIF that starts over, whole or not at all."""
    pictures = [
        Image.fromarray((frame * 255.0 + 0.5).clamp(0.0, 255.0).byte().permute(1, 2, 0).numpy())
        for frame in frames
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=10 * round(100 / frames_per_second),  # GIF counts hundredths of a second
            loop=0,
        )
